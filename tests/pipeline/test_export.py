"""Exported adapters and models load without unlora. Their cards describe the run without its rows or paths."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.reported import attacks, membership
from helpers.runs import FORGET, change_weights, exported, flags, logits, write_rows
from unlora.cli import main
from unlora.common.files import write_json
from unlora.models.hashes import adapter_sha256
from unlora.pipeline.card import code, literal, plain, shell
from unlora.report.read import read_run
from unlora.report.summary import summarise_run
from unlora.report.verdict import verdict


@pytest.fixture(scope="module")
def compared(model_folder, tmp_path_factory):
    """Return a folder with a run that was compared with a retrained model (the log of another run, `first`)."""
    folder = tmp_path_factory.mktemp("compared")
    write_rows(folder / "data" / "forget.jsonl", FORGET)
    write_rows(folder / "data" / "retain.jsonl", [{"question": f"What is {i}?", "answer": f"A {i}."} for i in range(6)])
    plain_run = flags(model_folder, folder / "data", folder / "first")
    assert main(["unlearn", *plain_run]) == 0
    settings = {"retrained": folder / "first" / "eval_unlearned.json", "learning_rate": 1e-2, "dtype": "float32"}
    assert main(["unlearn", *flags(model_folder, folder / "data", folder / "run", **settings)]) == 0
    return folder


def export(run, folder, **settings):
    given = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return main(["export", str(run), "--output_dir", str(folder), *given])


@pytest.mark.slow
def test_an_adapter_loads_in_transformers_and_peft_to_the_model_of_the_run(compared, model_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(compared / "run", out) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    own = logits(exported(model_folder, compared / "run"))
    assert (logits(AutoModelForCausalLM.from_pretrained(out)) - own).abs().max() <= 1e-4
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), out)
    assert (logits(by_peft) - own).abs().max() <= 1e-4
    assert AutoTokenizer.from_pretrained(out).eos_token == "<eos>"


def test_a_merged_model_is_the_base_with_the_adapter(compared, model_folder, tmp_path):
    out = tmp_path / "out"
    assert export(compared / "run", out, merge="true") == 0
    assert not list(out.glob("adapter*"))
    assert (out / "model.safetensors").is_file()
    merged = AutoModelForCausalLM.from_pretrained(out, use_safetensors=True)
    assert not isinstance(merged, PeftModel)
    own, base = logits(exported(model_folder, compared / "run")), AutoModelForCausalLM.from_pretrained(model_folder)
    assert (logits(merged) - own).abs().max() <= 1e-4
    assert (logits(merged) - logits(base)).abs().max() > 0.01
    assert merged.state_dict().keys() == base.state_dict().keys()


def test_a_lower_rank_is_reported_with_its_error_and_its_card_has_no_metrics(
    compared,
    model_folder,
    tmp_path,
    capsys,
    caplog,
):
    assert export(compared / "run", tmp_path / "out", max_rank=2) == 0
    assert "exported at rank 2: relative error of the weight change 0." in capsys.readouterr().out
    assert "cut to rank 2; what is published here was not measured" in (tmp_path / "out" / "README.md").read_text()
    assert ModelCard.load(tmp_path / "out" / "README.md").data.eval_results is None
    assert "at rank 2 the weight change has a relative error of" in caplog.text
    caplog.clear()
    small = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), tmp_path / "out")
    assert small.peft_config["default"].r == 2
    assert export(compared / "run", tmp_path / "all", max_rank=8) == 0
    assert "relative error" not in caplog.text + (tmp_path / "all" / "README.md").read_text()
    assert ModelCard.load(tmp_path / "all" / "README.md").data.eval_results
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), tmp_path / "all")
    assert (logits(whole) - logits(exported(model_folder, compared / "run"))).abs().max() <= 1e-4


def judged(run):
    """Return the verdict of the run's report as the card shows it."""
    shown = read_run(run)
    found = verdict(shown, summarise_run(shown))
    return f"**{found.label}.** {plain(found.sentence)}"


@pytest.mark.slow
def test_the_card_has_the_verdict_and_the_results_of_attacks(work, tmp_path):
    assert export(work / "run", tmp_path / "before") == 0
    text = (tmp_path / "before" / "README.md").read_text()
    assert judged(work / "run") in text
    assert "Not attacked:" in text
    assert "Not measured: it is not known whether the forget set can be distinguished" in text
    write_json(work / "run" / "membership.json", membership(auc=0.9, error=0.05))
    write_json(work / "run" / "attacks.json", attacks(gain=0.3, setting="20 % | <b>"))
    assert export(work / "run", tmp_path / "after") == 0
    card = ModelCard.load(tmp_path / "after" / "README.md")
    assert judged(work / "run") in card.text
    assert judged(work / "run") not in text
    [row] = [line for line in card.text.splitlines() if line.startswith("| loss |")]
    assert "| 0.900<br>± 0.050 |" in row
    [row] = [line for line in card.text.splitlines() if line.startswith("| relearn: 20 % \\| \\<b\\> |")]
    assert row.split(" | ")[-1].startswith("0.300 ± 0.010")
    assert "Not possible: paraphrase (no paraphrased\\_question)." in card.text
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found["membership_auc_loss"] == 0.9


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"init": None, "loss": None}, "(unknown initialisation, unknown loss)"),
        ({"init": "vila", "loss": "ihl"}, "(vila initialisation, ihl loss)"),
        ({"init": "<b>", "loss": "[x](y)"}, r"(\<b\> initialisation, \[x\]\(y\) loss)"),
    ],
)
def test_the_card_names_the_recorded_method_and_never_a_default(work, tmp_path, changes, shown):
    config = work / "run" / "config.yaml"
    settings = yaml.safe_load(config.read_text()) | changes
    config.write_text(yaml.safe_dump({name: value for name, value in settings.items() if value is not None}))
    assert export(work / "run", tmp_path / "out") == 0
    assert shown in (tmp_path / "out" / "README.md").read_text()


def test_the_run_is_left_as_it_is(compared, tmp_path):
    before = {path: path.read_bytes() for path in (compared / "run").rglob("*") if path.is_file()}
    export(compared / "run", tmp_path / "out", base_model="owner/base")
    assert before == {path: path.read_bytes() for path in (compared / "run").rglob("*") if path.is_file()}


@pytest.fixture
def card(compared, tmp_path):
    assert export(compared / "run", tmp_path / "card", base_model="owner/base") == 0
    return ModelCard.load(tmp_path / "card" / "README.md")


def test_the_card_has_the_unlearned_metrics_as_the_hub_s_model_index(compared, card):
    metrics = json.loads((compared / "run" / "metrics.json").read_text())["unlearned"]
    found = {(result.dataset_name, result.metric_type): result.metric_value for result in card.data.eval_results}
    forget = metrics["sets"]["forget"]
    assert (found["forget set", "given_away"], found["retain set", "broken"]) == (
        forget["given_away"],
        metrics["sets"]["retain"]["broken"],
    )
    assert ("retain set", "given_away") not in found
    assert found["forget set", "probability"] == pytest.approx(forget["probability"], abs=1e-6)
    assert found["all sets", "forget_quality"] == pytest.approx(metrics["forget_quality"], abs=1e-6)
    assert card.data.base_model == "owner/base"
    assert card.data.library_name == "peft"
    assert {"unlora", "machine-unlearning", "lora"} <= set(card.data.tags)
    written = yaml.safe_load(card.content.split("---")[1])
    assert written["model-index"][0]["name"] == "card"


def test_the_card_has_counts_hashes_metrics_of_three_models_limits_and_how_to_load(compared, card):
    record = json.loads((compared / "run" / "record.json").read_text())
    retrained = json.loads((compared / "first" / "metrics.json").read_text())["unlearned"]["sets"]["forget"][
        "probability"
    ]
    assert f"forget {len(FORGET)} rows" in card.text
    for part in record["data"].values():
        assert f"| {part['rows']} | `{part['sha256']}` |" in card.text
    [row] = [line for line in card.text.splitlines() if line.startswith("| forget set: probability")]
    assert row.split(" | ")[-1] == f"{retrained:.4g} |"
    for text in (
        "## Bias, Risks, and Limitations",
        "still hold what was learned",
        "PeftModel.from_pretrained(",
        "--max-lora-rank 8",
    ):
        assert text in card.text


def test_the_card_reveals_neither_rows_nor_local_paths(compared, card, model_folder):
    for row in FORGET:
        assert row["question"] not in card.content
        assert row["answer"] not in card.content
    assert not any(str(path) in card.content for path in (compared, model_folder))
    assert "retain.jsonl" not in card.content
    assert f"| forget set | `a local file` | {len(FORGET)} |" in card.text


def test_a_local_base_is_not_in_the_metadata_and_a_merged_model_is_not_an_adapter(compared, tmp_path):
    export(compared / "run", tmp_path / "local")
    local = ModelCard.load(tmp_path / "local" / "README.md")
    assert local.data.base_model is None
    export(compared / "run", tmp_path / "merged", merge="true", base_model="owner/base")
    merged = ModelCard.load(tmp_path / "merged" / "README.md")
    assert (merged.data.library_name, merged.data.base_model) == ("transformers", "owner/base")
    assert merged.data.base_model_relation == "finetune"
    assert "still hold what was learned" not in merged.text
    assert "peft" not in merged.text.lower()


def test_modules_of_several_ranks_are_not_for_vllm(compared, tmp_path, work):
    file = work / "run" / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rank_pattern": {"q_proj": 1}}))
    record = json.loads((work / "run" / "record.json").read_text())
    write_json(work / "run" / "record.json", {**record, "adapter": {"sha256": adapter_sha256(file.parent)}})
    assert export(work / "run", tmp_path / "out") == 0
    assert "serve the merged model" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("function", "text", "shown"),
    [
        (plain, "a\n# b <i> [x](y)", r"a \# b \<i\> \[x\]\(y\)"),
        (code, "a`b\n| c", "`a'b ¦ c`"),
        (literal, 'a"b```', '"a\\"b\\u0060\\u0060\\u0060"'),
        (shell, "a; rm -r `b`\n", "'a; rm -r '\"'\"'b'\"'\"''"),
    ],
)
def test_untrusted_text_is_escaped(function, text, shown):
    assert function(text) == shown


CASES = {
    "no folder": ({"output_dir": ""}, "output_dir=''"),
    "rank 0": ({"max_rank": 0}, "max_rank=0"),
    "ranks of a merged model": ({"max_rank": 2, "merge": "true"}, "a merged model has no adapter"),
    "no repository's name": ({"push_to_hub": "a//b", "base_model": "a/b"}, "push_to_hub='a//b'"),
    "a base that nobody has": ({"push_to_hub": "a/b"}, "base_model=None: the adapter would name a local folder"),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_settings_are_refused_before_anything_is_written(compared, tmp_path, capsys, case):
    changes, message = CASES[case]
    settings = {"output_dir": tmp_path / "out", **changes}
    given = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    assert main(["export", str(compared / "run"), *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_exported_are_refused(work, tmp_path, capsys):
    assert main(["export", "--output_dir", str(tmp_path / "out")]) == 2
    assert "RUN='': no run is named" in capsys.readouterr().err
    assert export(tmp_path, tmp_path / "out") == 2
    assert "it has no exported adapter" in capsys.readouterr().err
    change_weights(work)
    assert export(work / "run", tmp_path / "out") == 2
    assert "its weights are not those that the adapter" in capsys.readouterr().err
    (work / "run" / "record.json").unlink()
    assert export(work / "run", tmp_path / "out", card="false") == 2
    assert "record.json cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_the_adapter_itself_leaves_the_run(work, tmp_path):
    for name in ("modeling.py", ".env", "adapter_model.bin", "optimizer.pt"):
        (work / "run" / "adapter" / name).write_text("print('mine')")
    (work / "run" / "adapter" / "notes").symlink_to(work)
    assert export(work / "run", tmp_path / "out", card="false") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"),
    }
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def linked_weights(run):
    (run / "adapter" / "adapter_model.safetensors").rename(run.parent / "weights")
    (run / "adapter" / "adapter_model.safetensors").symlink_to(run.parent / "weights")


def linked_folder(run):
    (run / "adapter").rename(run.parent / "elsewhere")
    (run / "adapter").symlink_to(run.parent / "elsewhere")


def other_weights(run):
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, run / "adapter" / "adapter_model.safetensors")


def other_settings(run):
    file = run / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_alpha": 1.0}))


def broken_weights(run):
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")


@pytest.mark.parametrize("changed", [linked_weights, linked_folder, other_weights, other_settings, broken_weights])
@pytest.mark.parametrize("settings", [{}, {"merge": "true"}, {"max_rank": 2}])
def test_an_adapter_that_is_not_the_recorded_one_is_not_exported(work, tmp_path, capsys, changed, settings):
    changed(work / "run")
    assert export(work / "run", tmp_path / "out", card="false", **settings) == 2
    error = capsys.readouterr().err
    assert "symbolic link" in error if "linked" in changed.__name__ else "put the adapter of that run back" in error
    assert not (tmp_path / "out").exists()


RECORDS = {
    "another file": lambda record: record["files"].update({"../../secret": "0" * 64}),
    "another part": lambda record: record["data"].update({"problems": {"sha256": "0" * 64}}),
    "no hash": lambda record: record["adapter"].update(sha256=None),
    "a number": lambda record: record["data"]["forget"].update(sha256=3),
    "no data": lambda record: record.update(data=None),
    "a stream without end": lambda record: record["data"]["retain"].update(stream={"rows": "x"}),
}


@pytest.mark.parametrize("case", RECORDS)
@pytest.mark.parametrize("command", ["export", "verify"])
def test_a_record_that_no_run_wrote_is_refused(work, tmp_path, capsys, case, command):
    record = json.loads((work / "run" / "record.json").read_text())
    RECORDS[case](record)
    write_json(work / "run" / "record.json", record)
    assert (
        main([command, str(work / "run"), *(["--output_dir", str(tmp_path / "o")] if command == "export" else [])]) == 2
    )
    assert "its record.json cannot be read" in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """A local server with the part of the Hub's API that an upload uses."""

    def log_message(self, *args):
        pass

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.headers["Authorization"] != "Bearer hf_right":
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/whoami-v2":
            self.answer({"type": "user", "name": "owner", "auth": {"accessToken": {"role": "write"}}})
        else:
            self.answer({"id": "owner/name", "private": self.server.private, "siblings": [], "tags": []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.address}/owner/name", "name": "owner/name"})
        elif self.path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self.answer({"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"success": True, "commitUrl": f"{self.server.address}/owner/name/commit/a", "commitOid": "a"})
        else:
            self.answer({})


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.created, server.files, server.private = [], {}, True
    server.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


PUSH = {"push_to_hub": "owner/name", "base_model": "owner/base"}


def test_the_folder_is_uploaded_to_a_private_repository(compared, hub, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(compared / "run", out, **PUSH) == 0
    assert capsys.readouterr().out.splitlines() == [f"{hub.address}/owner/name", str(out)]
    [created] = hub.created
    assert {created.get("private"), created.get("visibility")} & {True, "private"}  # depends on the client's version
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir()}
    settings = json.loads(hub.files["adapter_config.json"])
    assert settings["base_model_name_or_path"] == "owner/base"
    assert ModelCard(hub.files["README.md"].decode()).data.model_name == "name"


def test_nothing_is_uploaded_to_a_public_repository_unless_requested(compared, hub, tmp_path, capsys):
    hub.private = False
    assert export(compared / "run", tmp_path / "a", **PUSH) == 2
    assert "the repository exists already and is public" in capsys.readouterr().err
    assert not hub.files
    assert export(compared / "run", tmp_path / "b", **PUSH, private="false") == 0
    assert hub.files


def test_an_invalid_token_is_reported_before_anything_is_written(compared, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert export(compared / "run", tmp_path / "out", **PUSH) == 2
    assert "log in with `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unreachable_hub_is_reported_before_anything_is_written(compared, hub, tmp_path, capsys):
    hub.shutdown()
    hub.server_close()
    assert export(compared / "run", tmp_path / "out", **PUSH) == 2
    assert "the Hub cannot be used" in (error := capsys.readouterr().err)
    assert "HF_ENDPOINT" in error
    assert not (tmp_path / "out").exists()


def test_an_upload_that_fails_leaves_a_complete_folder_and_says_how_to_retry(
    compared, hub, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Hub, "do_POST", lambda self: self.answer({"error": "no room"}, 403))
    out = tmp_path / "out"
    assert export(compared / "run", out, **PUSH) == 2
    assert f"{out} is complete: try again with `hf upload owner/name {out}`" in capsys.readouterr().err
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= {path.name for path in out.iterdir()}
