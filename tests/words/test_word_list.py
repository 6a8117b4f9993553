"""Word lists and the questions made of them: disjoint splits, one clear line for what is wrong."""

import pytest

from policy_split.commands.main import main
from policy_split.data.datasets import load_prompts
from policy_split.words.questions import WordsTask, is_words, words_task
from policy_split.words.word_list import SPLITS, Word, read_word_list, words_of


def written(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_our_list_is_long_and_every_split_has_words_of_each_class():
    words = read_word_list()
    assert len(words) == 737
    for split in SPLITS:
        assert all(len(found) >= 30 for found in words_of(words, split, "words").values())


def test_no_word_of_a_split_is_in_another_one():
    asked = {
        split: {word for row in load_prompts(f"words?size=300:{split}") for word in row["words"]} for split in SPLITS
    }
    assert all(len(words) > 50 for words in asked.values())
    assert not asked["train"] & (asked["held_out"] | asked["test"])
    assert not asked["held_out"] & asked["test"]


def test_questions_are_a_function_of_their_name():
    rows = load_prompts("words?size=2&seed=5:test")
    assert list(rows) == list(load_prompts("words?seed=5&size=2:test"))
    assert list(rows) == list(load_prompts("words?size=9&seed=5:test"))[:2] or rows[0]["task"] != "words"
    (row, _) = rows
    assert row["prompt"] == f"Write one short sentence that uses these words: {', '.join(row['words'])}."
    assert [word in forms for word, forms in zip(row["words"], row["forms"], strict=True)] == [True] * 3
    assert [len(load_prompts(name, held_out=held)) for name, held in (("words", False), ("words", True))] == [2000, 200]
    assert {len(row["words"]) for row in load_prompts("words?size=5&count=6")} == {6}
    prompts = [tuple(sorted(row["words"])) for row in load_prompts("words?size=2000")]
    assert len(set(prompts)) == 2000


def test_one_brings_a_list_of_ones_own(tmp_path):
    nouns = [f"noun n{'abcdefghijklmnopqrstuvwxyz'[i]}x" for i in range(26)]
    verbs = [f"verb v{'abcdefghijklmnopqrstuvwxyz'[i]}x VX" for i in range(26)]
    path = written(tmp_path, "\n".join(["# mine", "", *nouns, *verbs, "adjective zzz", "adjective Zz’s"]))
    assert Word("verb", "vax", ("vax", "vaxes", "vaxing", "vx")) in read_word_list(path)
    assert read_word_list(path)[-1].text == "zz's"
    chosen = Word("adjective", "zzz", ()).split
    rows = load_prompts(f"words?size=3&file={path}:{chosen}")
    assert all("zzz" in row["words"] or "zz's" in row["words"] for row in rows)


WRONG = [
    ("", r"word list .*list.txt has no words; expected a class, a word and its irregular forms, such as 'noun child"),
    ("# nothing\n\n", r"list.txt has no words"),
    ("dog\n", r"list.txt, line 1: 'dog': expected a class, a word .*; the classes are noun, verb, adjective"),
    ("noun\n", r"line 1: 'noun': expected a class"),
    ("noun dog\nnoun c4t\n", r"line 2: 'c4t' is not one word of letters"),
    ("noun ice-cream -\n", r"line 1: '-' is not one word of letters"),
    ("noun dog\nverb dog\nnoun DOG\n", r"line 3: the noun 'dog' stands in line 1 already"),
    ("noun dog\n", r"words\?.*: the word list is too short: none of its 1 words in the split 'train' has the class"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_a_wrong_list_is_said_in_one_line(tmp_path, text, said):
    with pytest.raises(ValueError, match=said) as error:
        load_prompts(f"words?file={written(tmp_path, text)}")
    assert "\n" not in str(error.value)


def test_what_is_no_list(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"word list .*missing\.txt: there is no such file"):
        read_word_list(tmp_path / "missing.txt")
    (tmp_path / "binary.txt").write_bytes(b"noun caf\xe9")
    with pytest.raises(ValueError, match=r"binary.txt: not UTF-8"):
        read_word_list(tmp_path / "binary.txt")


def test_a_list_too_short_for_so_many_questions():
    with pytest.raises(ValueError, match=r"the word list is too short: 737 words make about \d+ questions .*'test'"):
        load_prompts("words?count=2&size=5000:test")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("words?size=0", "size=0 must be at least 1"),
        ("words?size=-1", "size=-1 must be a whole number"),
        ("words?count=7", "count=7 must be 2 to 6 words"),
        ("words?count=x", "count=x must be a whole number"),
        ("words?length=3", "'length=3' must be one of size, seed, count, file"),
        ("words?size=3&size=4", "'size=4' must be one of"),
        ("words?size", "'size' must be one of"),
        ("words:nope", "has no split 'nope'; it has train, held_out, test"),
    ],
)
def test_a_wrong_name_is_said(name, said):
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        load_prompts(name)


def test_names():
    assert [is_words(name) for name in ("words", "words?size=3", "words/x", "wordsmith", "words.jsonl")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    task = words_task("words?file=a%20b.txt&size=3")
    assert (task.file, task.size) == ("a b.txt", 3)
    assert words_task(str(task)) == task == WordsTask(size=3, file="a b.txt")


def test_a_folder_of_that_name_is_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words").mkdir()
    with pytest.raises(ValueError, match="words: a folder, but not one that"):
        load_prompts("words")


def test_the_command_says_it_in_one_line(tmp_path, capsys):
    path = written(tmp_path, "")
    code = main(["train", "--model", "x/y", "--dataset", f"words?file={path}", "--output_dir", str(tmp_path / "run")])
    errors = capsys.readouterr().err
    assert code == 2
    assert errors == (
        f"policy-split train: error: word list {path} has no words; expected a class, a word and its irregular forms, "
        f"such as 'noun child children' on each line\n"
    )
