"""A run that pushes its model: what goes to the Hub, and what is found out before the first step."""

from types import SimpleNamespace

import huggingface_hub
import pytest
import tiny
from trained import trainer


class Hub:
    """In place of HfApi: remembers what it is asked."""

    def __init__(self, *, refuses=()):
        self.refuses, self.calls = refuses, []

    def __call__(self):
        return self

    def _asked(self, name, **arguments):
        self.calls.append((name, arguments))
        if name in self.refuses:
            raise ConnectionError("no\nnetwork")

    def whoami(self):
        self._asked("whoami")
        return {"name": "me"}

    def create_repo(self, repo_id, **options):
        self._asked("create_repo", repo_id=repo_id, **options)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, **options):
        self._asked("upload_folder", **options)
        return "address"


def pushing(folder, monkeypatch, *, refuses=(), **options):
    hub = Hub(refuses=refuses)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    return hub, trainer(folder, max_steps=1, save_steps=1, push_to_hub=True, chat=True, **options)


def test_the_model_its_tokenizer_and_card_are_pushed_and_nothing_else(tmp_path, monkeypatch):
    folder = tmp_path / "my-run"
    hub, run = pushing(folder, monkeypatch, hub_private_repo=True)
    run.train()
    (_, created), (_, pushed) = hub.calls[1:]
    assert created == {"repo_id": "me/my-run", "private": True, "exist_ok": True}
    assert (pushed["repo_id"], pushed["folder_path"]) == ("me/my-run", folder)
    assert pushed["allow_patterns"] == sorted(
        ["README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
         "policy_split.json", "tokenizer.json", "tokenizer_config.json"]
    )  # fmt: skip
    card = (folder / "README.md").read_text()
    assert "# my-run\n" in card
    assert "name = 'me/my-run'" in card


def test_an_owner_is_taken_as_given(tmp_path, monkeypatch):
    hub, run = pushing(tmp_path, monkeypatch, hub_model_id="lab/model")
    run.train()
    assert [name for name, _ in hub.calls] == ["whoami", "create_repo", "upload_folder"]
    assert hub.calls[1][1]["repo_id"] == hub.calls[2][1]["repo_id"] == "lab/model"


@pytest.mark.parametrize("refuses", ["whoami", "create_repo"])
def test_a_run_that_could_not_push_does_not_begin(tmp_path, monkeypatch, refuses):
    _, run = pushing(tmp_path / "run", monkeypatch, refuses=[refuses])
    with pytest.raises(
        OSError, match=r"^push_to_hub=True: run cannot be pushed .*ConnectionError: no network.*HF_TOKEN"
    ):
        run.train()
    assert run.progress.step == 0
    assert not (tmp_path / "run").exists()


def test_nobody_is_logged_in(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    run = trainer(tmp_path / "run", max_steps=1, push_to_hub=True)
    with pytest.raises(OSError, match="hf auth login"):
        run.train()
    assert not (tmp_path / "run").exists()


def test_a_model_that_could_not_be_pushed_is_saved_and_the_error_says_how_it_goes_there(tmp_path, monkeypatch):
    _, run = pushing(tmp_path, monkeypatch, refuses=["upload_folder"], hub_model_id="lab/model")
    with pytest.raises(OSError, match=r"hf upload lab/model .* --include model\.safetensors"):
        run.train()
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["", "a/b/c", "a b", "/x"])
def test_what_is_no_repository_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=r"hub_model_id=.* must be NAME or OWNER/NAME"):
        tiny.config(tmp_path, hub_model_id=name)
