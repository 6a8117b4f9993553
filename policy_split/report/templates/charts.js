// Draws every chart from the JSON behind its place, in the page's colors, and lets the legends switch runs and modes.
"use strict";
(() => {
  // these alone: Plotly offers to send a chart away too
  const modeBarButtons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  const config = { responsive: true, displaylogo: false, modeBarButtons, plotlyServerURL: "" };
  const off = { run: new Set(), mode: new Set() };
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const draw = (place) => {
    const { data, layout } = JSON.parse(place.nextElementSibling.textContent);
    for (const trace of data) {
      const own = color(`--c${trace.meta.color}`);
      trace.line = { ...trace.line, color: own };
      trace.marker = { ...trace.marker, color: own };
      trace.fillcolor = own;
      trace.visible = !off.run.has(`${trace.meta.run}`) && !off.mode.has(`${trace.meta.mode}`);
    }
    const [text, quiet, edge, back] = ["--text", "--quiet", "--edge", "--back"].map(color);
    layout.font = { family: "system-ui, sans-serif", size: 12, color: quiet };
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: edge, activecolor: quiet };
    Object.assign(layout.hoverlabel, { bgcolor: back, bordercolor: edge, font: { color: text } });
    for (const axis of [layout.xaxis, layout.yaxis]) {
      Object.assign(axis, { gridcolor: edge, linecolor: quiet, tickcolor: quiet });
    }
    // a finger that scrolls the page must not zoom
    layout.dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
    Plotly.react(place, data, layout, config);
  };
  const drawAll = () => document.querySelectorAll(".chart").forEach(draw);

  document.querySelectorAll(".legend button").forEach((button) => {
    const kind = "run" in button.dataset ? "run" : "mode";
    const which = button.dataset[kind];
    button.addEventListener("click", () => {
      off[kind].delete(which) || off[kind].add(which);
      const alike = document.querySelectorAll(`.legend button[data-${kind}="${which}"]`);
      alike.forEach((each) => each.setAttribute("aria-pressed", `${!off[kind].has(which)}`));
      drawAll();
    });
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
})();
