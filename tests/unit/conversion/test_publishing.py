"""What is uploaded to the hub, what is refused, and an upload to a hub that runs here."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from diablo_ds.adapter.storage import AdapterConfig, load_adapter, save_adapter
from diablo_ds.cli.main import main
from diablo_ds.conversion.card import model_card
from diablo_ds.conversion.privacy import find_private_paths, find_secrets
from diablo_ds.conversion.publishing import plan_upload, push
from diablo_ds.errors import UserError
from diablo_ds.files.layout import ADAPTER_CONFIG_FILE, ADAPTER_TENSOR_FILE, CARD_FILE
from tests.early_adapters import make_early

CONFIG = AdapterConfig(
    "org/base", "f" * 64, {"a": 2}, parent={"folder": "/home/me/first", "digest": "d"}
)
TENSORS = {"a.delta": torch.ones(2, 3, 4)}


@pytest.fixture
def folder(tmp_path):
    card = model_card(CONFIG, 24, licence="mit")
    beside = {CARD_FILE: card.encode(), "generation_config.json": {"eos_token_id": [1]}}
    save_adapter(tmp_path / "adapter", TENSORS, CONFIG, beside)
    return tmp_path / "adapter"


def _push(*arguments):
    return CliRunner().invoke(main, ["push", *map(str, arguments)])


def test_a_dry_run_shows_files_with_sizes_and_the_repositorys_settings(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "tokenizer.json").symlink_to("/etc/hostname")
    result = _push(folder, "--repo", "me/adapter", "--dry-run")
    assert result.exit_code == 0, result.output
    tensor_bytes = (folder / ADAPTER_TENSOR_FILE).stat().st_size
    for line in (
        "Repository me/adapter",
        "  type         model",
        "  visibility   private",
        "  licence      mit",
        "  base model   org/base",
        f"  {tensor_bytes:>13,}  adapter_model.safetensors",
        "Not uploaded: notes.txt, tokenizer.json",
        "Dry run: nothing was uploaded",
    ):
        assert line in result.output.splitlines(), line
    public = _push(folder, "--repo", "me/x", "--public", "--licence", "apache-2.0", "--dry-run")
    assert "visibility   public" in public.output
    assert "licence      apache-2.0" in public.output


def test_what_is_uploaded_loads_strictly_and_names_no_folder(folder, tmp_path):
    upload = plan_upload(folder, "me/adapter")
    new = tmp_path / "downloaded"
    new.mkdir()
    for name, content in upload.files.items():
        (new / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    tensors, config = load_adapter(new)
    assert torch.equal(tensors["a.delta"], TENSORS["a.delta"])
    assert config.base_model == "org/base"
    assert config.parent == {"folder": "first", "digest": "d"}
    assert load_adapter(folder)[1] == CONFIG  # untouched


def test_a_local_base_must_be_given_a_name_on_the_hub(tmp_path):
    folder = tmp_path / "adapter"
    for base in (str(tmp_path / "base"), "default", ""):
        config = AdapterConfig(base, "f" * 64, {"a": 2})
        save_adapter(folder, TENSORS, config, {CARD_FILE: model_card(config, 24).encode()})
        with pytest.raises(UserError, match="give its name on the hub by --base-model"):
            plan_upload(folder, "me/adapter")
        upload = plan_upload(folder, "me/adapter", base_model="org/base")
        assert json.loads(upload.files[ADAPTER_CONFIG_FILE])["base_model_name_or_path"] == (
            "org/base"
        )
        card = upload.files[CARD_FILE].decode()
        assert ModelCard(card).data.base_model == "org/base"
        assert "BASE_MODEL" not in card
        assert "SmolLM2" not in card


def test_a_folder_without_a_card_gets_a_short_one(folder):
    (folder / CARD_FILE).unlink()
    card = plan_upload(folder, "me/adapter").files[CARD_FILE].decode()
    assert ModelCard(card).data.base_model == "org/base"
    assert not (folder / CARD_FILE).exists()


def _break_tensors(folder):
    tensors = load_file(folder / ADAPTER_TENSOR_FILE)
    save_file({name: t * torch.nan for name, t in tensors.items()}, folder / ADAPTER_TENSOR_FILE)


def _append(text):
    def change(folder):
        with (folder / CARD_FILE).open("a") as file:
            file.write(text)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_break_tensors, "NaN or infinity"),
        (make_early, "must have the present form"),
        (lambda folder: (folder / ADAPTER_TENSOR_FILE).unlink(), "safetensors"),
        (
            _append("\ndata from /home/me/pairs.jsonl\n"),
            r"no path of this .* /home/me/pairs\.jsonl",
        ),
        (_append(f"\nHF_TOKEN=hf_{'a' * 34}\n"), "no secrets; got line .* a token of Hugging Face"),
        (lambda folder: (folder / CARD_FILE).write_text("---\n: [\n---\n"), "valid front matter"),
        (lambda folder: (folder / CARD_FILE).write_bytes(b"\xff"), "must be UTF-8"),
    ],
)
def test_what_others_could_not_load_or_should_not_see_is_refused(folder, change, message):
    change(folder)
    with pytest.raises(UserError, match=message):
        plan_upload(folder, "me/adapter")


@pytest.mark.parametrize("repo", ["adapter", "me/", "/x/y", "a/b/c", "me/ad apter", "../x"])
def test_a_repository_must_have_an_owner_and_a_name(folder, repo):
    result = _push(folder, "--repo", repo, "--dry-run")
    assert result.exit_code == 2
    assert "repo must be owner/name" in result.output


def test_secrets_and_private_paths_are_told_from_other_text():
    for line in (
        "aws AKIAABCDEFGHIJKLMNOP",
        "-----BEGIN RSA PRIVATE KEY-----",
        "https://me:hunter22@host/x",
        "api_key = 0123456789",
        "ghp_" + "a" * 36,
    ):
        assert find_secrets(f"text\n{line}") != [], line
    assert find_secrets('{"password": 123456}', is_prose=False) == []
    for line in ("~/models", "from /data/x.jsonl", "=/work/a/b", r"C:\Users\me", "file:///a/b"):
        assert find_private_paths(line) != [], line
    for line in (
        "https://arxiv.org/abs/2506.03230",
        "and/or",
        "</a/b>",
        "runs/mine/adapter",
        "/ x",
    ):
        assert find_private_paths(line) == [], line


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload asks for."""

    def do_GET(self):
        self._answer({"id": "me/adapter", "private": self.server.is_private, "siblings": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self._answer({"url": f"{self.server.address}/me/adapter"})
        elif self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._answer({"files": [{"path": name, **modes} for name in names]})
        elif "/commit/main" in self.path:
            self.server.commit = [json.loads(line) for line in body.splitlines()]
            url = f"{self.server.address}/me/adapter/commit/0"
            self._answer({"commitUrl": url, "commitOid": "0", "success": True})
        else:
            self._answer({"errors": [], "warnings": []})

    def _answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    server.asked, server.is_private, server.created, server.commit = [], True, None, None
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_all_files_are_uploaded_in_one_commit_to_a_private_repository(folder, hub):
    upload = plan_upload(folder, "me/adapter")
    assert push(upload).endswith("/me/adapter")
    assert hub.created["name"] == "adapter"
    assert hub.created.get("private") or hub.created.get("visibility") == "private"
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in hub.commit
        if line["key"] == "file"
    }
    assert sent.keys() == upload.files.keys()
    assert sent[ADAPTER_TENSOR_FILE] == (folder / ADAPTER_TENSOR_FILE).read_bytes()


def test_a_private_adapter_is_not_pushed_to_a_public_repository(folder, hub):
    hub.is_private = False
    with pytest.raises(UserError, match="which is public; give --public"):
        push(plan_upload(folder, "me/adapter"))
    assert hub.commit is None
    push(plan_upload(folder, "me/adapter", private=False))
    assert hub.commit is not None


def test_without_a_login_nothing_is_asked(folder, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(folder / "none"))
    with pytest.raises(UserError, match="needs a login at the hub"):
        push(plan_upload(folder, "me/adapter"))
    assert hub.asked == []
