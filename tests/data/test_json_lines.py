"""JSON lines: what ends a line, what is skipped, and faults with their own line and column."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy_split.data.datasets import load_prompts
from policy_split.data.json_lines import read_json_rows

# what str.splitlines takes for the end of a line, and JSON lines do not
WITHIN_LINES = ["\u2028", "\u2029", "\u0085", "\x7f"]
CONTROLS = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
ROW = '{"prompt": "a"}'


@pytest.fixture
def write(tmp_path):
    def write(content, name="q.jsonl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("character", WITHIN_LINES)
def test_only_a_line_feed_ends_a_line(write, character):
    path = write(f'{{"prompt": "a{character}b"}}\n{ROW}\n')
    assert load_prompts(path)["prompt"] == [f"a{character}b", "a"]


@pytest.mark.parametrize(
    "character",
    [*CONTROLS, *WITHIN_LINES, "\n", "\r", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")],
)
def test_escaped_characters(write, character):
    path = write(json.dumps({"prompt": f"a{character}b"}) + "\n" + ROW)
    assert load_prompts(path)["prompt"] == [f"a{character}b", "a"]


@pytest.mark.parametrize("character", CONTROLS)
def test_a_bare_control_character_is_no_json_and_does_not_end_the_line(write, character):
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2, column 14: Invalid control character"):
        load_prompts(write(f'{ROW}\n{{"prompt": "a{character}b"}}\n'))


@pytest.mark.parametrize(
    "content",
    [
        f"\ufeff{ROW}\n{ROW}\n",
        f"{ROW}\r\n{ROW}\r\n",
        f"\n{ROW}\n  \n\t\n{ROW}",
        f"\r\n{ROW}\r\n\r\n{ROW}\r\n",
        f"\ufeff\n  {ROW}  \n\x0c\n{ROW}\n\n",
        f"[{ROW}, {ROW}]",
        f"\ufeff \n[\n  {ROW},\n  {ROW}\n]\n",
    ],
)
def test_what_surrounds_the_rows_is_skipped(write, content):
    assert load_prompts(write(content)).to_list() == [{"prompt": "a"}] * 2


@pytest.mark.parametrize("name", ["q.jsonl.gz", "q.json.gz", "q.jsonl"])
def test_packed_files(write, name):
    assert load_prompts(write(gzip.compress(f"{ROW}\n{ROW}".encode()), name)).to_list() == [{"prompt": "a"}] * 2
    with pytest.raises(ValueError, match=r"packed by gzip, and cannot be unpacked"):
        load_prompts(write(gzip.compress(ROW.encode())[:-6], name))


FAULTS = [
    (f'{ROW}\n{ROW}\n{{"prompt": "c",}}\n', "line 3, column 15: Illegal trailing comma|line 3, column 16: Expecting"),
    (f'{ROW}\n\n{{"prompt": NaN}}', "line 3, column 12: NaN is not JSON; write null, or a text"),
    (f'{ROW}\n{{"a": "NaN", "b": [1, -Infinity], "prompt": ""}}', "line 2, column 23: -Infinity is not JSON"),
    ('{"prompt": "a", "x": 1e999}', r"line 1, column 22: 1e999 is beyond what a float can hold"),
    (
        f'{ROW}\n{{"prompt": "a", "x": {{"b": 1, "c": {{"b": 2}}, "b": 3}}}}',
        "line 2, column 46: the key 'b' stands twice",
    ),
    ('{"prompt": "a", "pro\\u006dpt": "b"}', "line 1, column 17: the key 'prompt' stands twice"),
    (f"{ROW}\n[1]", r"line 2: list \[1\], expected an object; a file holds one JSON object per line"),
    (f'{ROW}\n"a"', "line 2: str 'a', expected an object"),
    (f"{ROW}\nnull", "line 2: NoneType None, expected an object"),
    (f"{ROW} {ROW}", "line 1, column 17: Extra data; a file holds one JSON object per line"),
    ('{\n  "prompt": "a"\n}\n', "line 1, column 2: Expecting property name.*; a file holds one JSON object per line"),
    ("prompt\na\n", "line 1, column 1: Expecting value"),
    (f'{ROW}\n{{"prompt": "a', "line 2, column 12: Unterminated string"),
    (f"[{ROW},\n\n {ROW},\n 7]", "line 4: int 7, expected an object"),
    (f"[{ROW},\n {ROW}\n", "line 3, column 1: expected ',' or ']'"),
    (f"[{ROW},\n {ROW}]\n{ROW}", "line 3, column 1: there is more behind the end of the list"),
    (f'[{ROW},\n {{"prompt": "a", "prompt": "b"}}]', "line 2, column 18: the key 'prompt' stands twice"),
    (f'[{ROW},\n {{"prompt": Infinity}}]', "line 2, column 13: Infinity is not JSON"),
    ("[" * 100_000, "line 1, column 2: nested too deeply|recursion"),
    ('{"a": ' * 100_000, "line 1, column 1: nested too deeply|recursion"),
    ('{"prompt": "a", "x": ' + "9" * 5000 + "}", "line 1, column 1: Exceeds the limit"),
    (ROW.encode() + b'\n{"prompt": "\xc3\xa9\xff"}', "line 2, column 14: byte 30 of the file, 0xff, is not UTF-8"),
    (b"\xef\xbb\xbf" + ROW.encode() + b"\n\xc3", "line 2, column 1: byte 19 of the file, 0xc3, is not UTF-8"),
    (f"{ROW}\n".encode("utf-16"), "begins with the byte order mark of UTF-16"),
    (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, not the file itself"),
]


@pytest.mark.parametrize(("content", "expected"), FAULTS, ids=range(len(FAULTS)))
def test_a_fault_has_its_file_line_and_column(write, content, expected):
    with pytest.raises(ValueError, match=rf"q\.jsonl.*({expected})") as raised:
        load_prompts(write(content))
    assert "\n" not in str(raised.value)


def test_faults_of_rows_have_their_line(write):
    with pytest.raises(ValueError, match=r"q\.jsonl, line 4: a prompt must be text"):
        load_prompts(write(f'{ROW}\n\n{ROW}\n{{"prompt": 5}}\n'))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=4), st.booleans(), st.booleans())
def test_every_row_comes_back_as_it_was(tmp_path_factory, rows, as_list, ascii_only):
    path = tmp_path_factory.mktemp("rows") / "q.json"
    text = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    path.write_bytes((f"[{', '.join(text)}]" if as_list else "\n".join(text)).encode("utf-8", "surrogatepass"))
    read = [row.value for row in read_json_rows(path)]
    assert repr(read) == repr(rows)  # of the same types too
