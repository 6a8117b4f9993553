"""--paper and --recommended: what they set, what wins over them, and where they are refused."""

import pytest

from policy_split.commands.train_arguments import parse
from policy_split.config import PolicySplitConfig
from policy_split.config.presets import PRESETS


def test_the_paper_s_are_the_defaults_of_the_method():
    assert PRESETS.keys() == {"paper", "recommended"}
    for settings in PRESETS.values():
        assert {name: getattr(PolicySplitConfig(**settings), name) for name in settings} == settings
    defaults = PolicySplitConfig()
    assert {name: getattr(defaults, name) for name in PRESETS["paper"]} == PRESETS["paper"]
    assert (defaults.alpha, defaults.eta, defaults.kappa, defaults.clamp) == (0.5, 0.03, 2.0, "paper")


def test_what_is_recommended_differs_from_the_paper_in_four_settings():
    differs = {name: value for name, value in PRESETS["recommended"].items() if PRESETS["paper"][name] != value}
    assert differs == {"eta": 0.6, "clamp": "code", "share_correction": "positive", "target_kl": 0.2}


def test_a_baseline_has_no_target_of_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["--size", "minute", "--recommended", "--algorithm", "grpo"]
    assert parse(common).config.target_kl is None
    with pytest.raises(ValueError, match=r"target_kl=.* is of two modes"):
        parse([*common, "--target_kl", "0.1"])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_goes_over_a_size_and_under_flags_and_files(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = parse(["--size", "minute"]).config
    assert (plain.clamp, plain.eta, plain.share_correction) == ("code", 0.6, "truncated")
    config = parse(["--size", "minute", f"--{preset}"]).config
    assert {name: getattr(config, name) for name in PRESETS[preset]} == PRESETS[preset]
    assert config.max_steps == plain.max_steps
    assert parse(["--size", "minute", f"--{preset}", "--eta", "0.5"]).config.eta == 0.5
    (tmp_path / "own.yaml").write_text("eta: 0.25\n")
    config = parse(["--size", "minute", f"--{preset}", "--config", "own.yaml"]).config
    assert (config.eta, config.clamp) == (0.25, PRESETS[preset]["clamp"])


def test_one_at_a_time_and_only_at_the_start(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(["--paper", "--recommended"])
    assert "not allowed with argument" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("max_steps: 3\nsize: minute\n")
    with pytest.raises(ValueError, match="--paper is of a run that begins"):
        parse(["--resume", str(tmp_path), "--paper"])
