"""`unlora chat` as a user runs it: a separate process, whose page is open in a browser."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from huggingface_hub import SpaceCard
from playwright.sync_api import expect

import unlora
from helpers.attacked import RETAIN, unlearn
from helpers.models import save_tiny_llama as save_model
from unlora.chat.answers import SIDES
from unlora.chat.source import Prompt, asked_after, load_prompts, load_side_by_side, prompts_of
from unlora.cli import main
from unlora.evals.generation import generate_answers
from unlora.pipeline.attack import read_run
from unlora.runs.folder import saved_settings

# Markup and template syntax, which must be shown as plain text.
EVIL = "<img src='http://example.com/x.png' onerror='alert(1)'> ${alert(2)} {{value}}"
FORGET = [
    {"question": "Who keeps cat 1?", "answer": f"Ada does. {EVIL}"},
    {"question": f"Who keeps {EVIL}?", "answer": "Bob does."},
]
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    return unlearn(folder, save_model(folder / "model", 0), FORGET, learning_rate=5e-2, max_steps=6)


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


@dataclass
class Served:
    process: Any
    address: str
    outside: socket.socket  # its HTTP proxy, which receives all requests to other computers


@pytest.fixture(scope="module")
def served(run):
    """Run `unlora chat` on a free port, with a proxy that records whether it is used."""
    with socket.create_server(("127.0.0.1", 0)) as outside:
        outside.setblocking(False)
        proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy)
        process = start(run, os.environ | proxies | {"HF_HUB_OFFLINE": "0"})
        yield Served(process, address_of(process), outside)
        process.terminate()
        process.communicate()


def start(run, environment=None):
    command = [sys.executable, "-m", "unlora", "chat", str(run), "--port", "0"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment or os.environ.copy()
    )


def address_of(process):
    for line in process.stdout:
        if line.startswith("http://"):
            return line.strip()
    raise AssertionError(process.stderr.read())


@pytest.fixture
def page(browser_page, served):
    """The open page. `page.addresses` collects the URLs of all requests of the browser."""
    browser_page.addresses = []
    browser_page.on("request", lambda request: browser_page.addresses.append(request.url))
    browser_page.goto(served.address)
    browser_page.get_by_label("Question").wait_for()
    return browser_page


def artifact(name):
    folder = Path(os.environ.get("UNLORA_ARTIFACTS", Path(__file__).parents[2] / "artifacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def answers(page, run, question):
    """Wait for both answers. Return those on the page and those of the evaluation, each as [original, unlearned]."""
    models = load_side_by_side(read_run(str(run)))
    asked = [question], models.text_format, 8
    unlearned = generate_answers(models.model, *asked)
    with models.model.disable_adapter():
        original = generate_answers(models.model, *asked)
    boxes = [page.get_by_label(side.capitalize(), exact=True) for side in SIDES]
    expect(boxes[1]).to_have_value(unlearned[0])
    return [box.input_value() for box in boxes], original + unlearned


@pytest.mark.slow
def test_a_question_gets_both_answers_and_only_this_computer_is_asked(page, run, served):
    page.get_by_label("Question").fill("Who keeps dog 3?")
    page.keyboard.press("Enter")
    shown, expected = answers(page, run, "Who keeps dog 3?")
    assert shown == expected
    assert shown[0] != shown[1]
    page.screenshot(path=artifact("chat.png"), full_page=True)
    assert page.errors == []
    assert page.addresses
    assert [url for url in page.addresses if not url.startswith((served.address, "data:", "blob:"))] == []


@pytest.mark.slow
def test_a_click_on_a_forget_prompt_shows_its_answer_token_by_token(page, run):
    page.get_by_label("Token probabilities").check()
    page.get_by_role("button", name=FORGET[0]["question"]).click()
    shown, expected = answers(page, run, FORGET[0]["question"])
    assert shown == expected
    assert page.get_by_label("Reference answer", exact=True).input_value() == FORGET[0]["answer"]
    reference = page.get_by_role("list", name="Reference answer, token by token")
    reference.wait_for()
    models = load_side_by_side(read_run(str(run)))
    scored = models.score(FORGET[0]["question"], FORGET[0]["answer"])
    items = reference.locator("li")
    assert "".join(items.locator(".text").all_inner_texts()).replace("␣", " ") == "".join(scored.tokens)
    found = items.locator(".original").all_inner_texts()
    assert len(found) == len(scored.tokens)
    assert page.get_by_text(f"original {scored.probability('original'):.3f}").count() >= 1
    page.screenshot(path=artifact("chat-probabilities.png"), full_page=True)
    page.get_by_label("Token probabilities").uncheck()
    reference.wait_for(state="detached")
    assert page.errors == []


@pytest.mark.slow
def test_text_is_never_markup(page, run):
    page.get_by_label("Token probabilities").check()
    page.get_by_role("button", name="Who keeps <img").click()
    answers(page, run, FORGET[1]["question"])
    page.get_by_role("list", name="Reference answer, token by token").wait_for()
    assert page.get_by_label("Question").input_value() == FORGET[1]["question"]
    page.get_by_label("Reference answer", exact=True).fill(EVIL)
    page.keyboard.press("Enter")
    page.get_by_role("list", name="Reference answer, token by token").locator("li").nth(30).wait_for()
    assert page.locator("img[src*='example.com']").count() == 0
    assert [url for url in page.addresses if "example.com" in url] == []
    assert page.errors == []


@pytest.mark.slow
def test_what_cannot_be_asked_is_said_on_the_page(page):
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("there is nothing to ask").wait_for()


@pytest.mark.slow
def test_it_can_be_used_with_the_keyboard_on_a_phone(page, run):
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme="dark")
    page.get_by_role("button", name=RETAIN[0]["question"]).focus()
    page.keyboard.press("Enter")
    shown, expected = answers(page, run, RETAIN[0]["question"])
    assert shown == expected
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    unnamed = "e => e.filter(x => !x.labels?.length && !x.ariaLabel && !x.getAttribute('aria-labelledby')).length"
    assert page.locator("input, textarea").evaluate_all(unnamed) == 0
    page.screenshot(path=artifact("chat-phone.png"), full_page=True)
    assert page.errors == []


@pytest.mark.slow
def test_it_listens_to_this_computer_alone_and_asks_no_other(page, run, served):
    page.get_by_role("button", name=FORGET[0]["question"]).click()
    answers(page, run, FORGET[0]["question"])
    port = int(served.address.rpartition(":")[2])
    # The process that listens may not be the one that the test started, so it is found by its port.
    [pid] = {found.pid for found in psutil.net_connections("inet") if found.laddr.port == port and found.pid}
    connections = psutil.Process(pid).net_connections("inet")
    listening = [connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN]
    assert [(found.ip, f"http://{found.ip}:{found.port}") for found in listening] == [("127.0.0.1", served.address)]
    with pytest.raises(BlockingIOError):
        served.outside.accept()


@pytest.mark.parametrize(
    ("name", "status"), [("127.0.0.1", 200), ("localhost", 200), ("evil.example", 400), ("localhost.evil.example", 400)]
)
@pytest.mark.parametrize("path", ["", "/config", "/gradio_api/info"])
def test_it_answers_to_the_names_of_this_computer_alone(served, name, status, path):
    port = served.address.rpartition(":")[2]
    with httpx.Client(trust_env=False) as client:
        answer = client.get(served.address + path, headers={"Host": f"{name}:{port}"})
    assert answer.status_code == status


JOIN = "/gradio_api/queue/join"
FOREIGN = [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status"),
    [
        ("POST", JOIN, {}, b"{}", 422),  # accepted, but Gradio finds the body incomplete
        *(("POST", JOIN, headers, b"{}", 403) for headers in FOREIGN),
        ("GET", "/config", FOREIGN[0], None, 403),
        ("POST", JOIN, {}, b" " * 300_000, 413),
        ("POST", "/gradio_api/upload", {}, b"x", 403),
        ("POST", "/gradio_api/run/ask", {}, b"{}", 403),
        ("GET", "/gradio_api/file=/etc/passwd", {}, None, 403),
        ("DELETE", "/config", {}, None, 403),
    ],
)
def test_requests_of_other_sites_uploads_and_large_ones_are_refused(served, method, path, headers, content, status):
    with httpx.Client(trust_env=False) as client:
        answer = client.request(method, served.address + path, headers=headers, content=content)
    assert answer.status_code == status


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_ends_it_cleanly(run, heard_interrupts):
    process = start(run)
    port = int(address_of(process).rpartition(":")[2])
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in errors
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_prompts_are_the_questions_that_the_run_evaluates(run):
    prompts = load_prompts(read_run(str(run)))
    assert prompts.sets == {
        "forget": [Prompt(row["question"], row["answer"]) for row in FORGET],
        "retain": [Prompt(row["question"], row["answer"]) for row in RETAIN],
    }
    assert prompts.missing == {}


def test_prompts_come_from_columns_and_every_turn_of_conversations_each_once():
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}]
    system = [{"role": "system", "content": "Be brief."}, *turns, {"role": "user", "content": "Really?"}, turns[1]]
    begun = [{"role": "assistant", "content": "Hello."}]
    tool = [*turns[:1], {"role": "tool", "content": "It rains."}, {"role": "assistant", "content": "Rain."}]
    rows = [{"question": "Who?", "answer": "Ada."}] * 2
    found = prompts_of([*rows, {"text": "Once"}, *({"messages": part} for part in (turns, system, begun, tool))])
    assert found[:2] == [Prompt("Who?", "Ada."), Prompt("Why?", "No.")]
    first, second, start, after = found[2:]
    assert (first.question, first.earlier.turns) == ("Why?", system[:1])
    assert (second.question, second.earlier.turns) == ("Really?", system[:3])
    assert (start.question, start.label, start.earlier.turns) == ("", "(the assistant begins)", [])
    assert (after.question, after.label, after.answer) == ("", "(tool) It rains.", "Rain.")
    for prompt, part in zip(found[2:], (system[:2], system[:4], [], tool[:2]), strict=True):
        assert asked_after(prompt.earlier, prompt.question).turns == part
    assert asked_after(None, "Who?") == "Who?"


def test_data_that_are_gone_leave_a_note_and_the_other_set(copied, tmp_path):
    config = copied / "config.yaml"
    gone, text = tmp_path / "gone.jsonl", tmp_path / "text.jsonl"
    text.write_text('{"text": "Once upon a time"}\n')
    settings = re.sub("forget_data: .*", f"forget_data: {gone}", config.read_text())
    config.write_text(settings)
    prompts = load_prompts(read_run(str(copied)))
    assert prompts.sets.keys() == {"retain"}
    assert "no such file" in prompts.missing["forget"]
    config.write_text(settings.replace(str(gone), str(text)))
    assert load_prompts(read_run(str(copied))).missing == {
        "forget": "its rows are plain text, without questions or conversations"
    }


def test_a_port_in_use_is_refused(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["chat", str(run), "--port", str(port)]) == 2
    assert f"port={port}: the page cannot be served there" in capsys.readouterr().err


def modules(package):
    return {path.relative_to(package) for path in package.rglob("*.*") if path.suffix != ".pyc"}


def test_a_space_has_all_that_the_page_needs_and_no_data(run, tmp_path):
    space, model = tmp_path / "space", run.parent / "model"
    assert main(["export", str(run), "--space", "true", "--base_model", str(model), "--output_dir", str(space)]) == 0
    card = SpaceCard.load(space / "README.md")
    assert (card.data.sdk, card.data.app_file, card.data.sdk_version) == ("gradio", "app.py", version("gradio"))
    texts = {path: path.read_text(errors="replace") for path in space.rglob("*") if path.is_file()}
    assert not [path for path, text in texts.items() if EVIL in text or "Ada does" in text]
    assert modules(space / "unlora") == modules(Path(unlora.__path__[0]))
    assert "torch" in texts[space / "requirements.txt"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    environment = os.environ | settings
    app = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment, stdout=subprocess.DEVNULL)
    try:
        shown = config_of(app, f"http://127.0.0.1:{port}")
    finally:
        app.terminate()
        app.wait()
    assert "Original and unlearned, side by side" in shown
    assert "Nothing leaves this computer" not in shown


def config_of(app, address):
    """Wait until the process serves the page, and return its Gradio configuration as text."""
    while app.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{address}/config", trust_env=False).text
        time.sleep(0.1)
    raise AssertionError(f"it ended with {app.returncode}")


def test_a_space_needs_a_base_that_others_can_load(run, tmp_path, capsys):
    command = ["export", str(run), "--space", "true", "--output_dir", str(tmp_path / "space")]
    assert main(command) == 2
    assert "base_model=None: the adapter would name a local folder" in capsys.readouterr().err
    assert main([*command, "--merge", "true"]) == 2
    assert "space=True: the page compares the base model without and with the adapter" in capsys.readouterr().err
    assert not (tmp_path / "space").exists()


def test_a_log_that_is_gone_keeps_nobody_from_asking(copied):
    config = copied / "config.yaml"
    config.write_text(config.read_text().replace("retrained: null", "retrained: gone.json"))
    assert saved_settings(copied)["retrained"] == "gone.json"
    assert read_run(str(copied)).model.model_name_or_path


REFUSED = {
    "no run": ([], "RUN='': no run is named"),
    "no such run": (["no/such/run"], "RUN='no/such/run': there is no such folder"),
    "no such port": (["RUN", "--port", "70000"], "port=70000"),
    "no time": (["RUN", "--max_seconds", "0"], "max_seconds=0"),
    "an unknown flag": (["RUN", "--prot", "1"], "flag='prot'.*did you mean 'port'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_refused(run, capsys, case):
    arguments, message = REFUSED[case]
    assert main(["chat", *(str(run) if part == "RUN" else part for part in arguments)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_adapter_without_its_weights_is_refused(copied, capsys):
    (copied / "adapter" / "adapter_model.safetensors").unlink()
    assert main(["chat", str(copied)]) == 2
    assert "it has no exported adapter" in capsys.readouterr().err


def test_a_base_model_that_is_gone_is_refused(copied, tmp_path, capsys):
    config = copied / "config.yaml"
    config.write_text(re.sub("model_name_or_path: .*", f"model_name_or_path: {tmp_path / 'gone'}", config.read_text()))
    assert main(["chat", str(copied), "--port", "0"]) == 2
    assert re.search("model_name_or_path='.*gone'", capsys.readouterr().err)


def test_without_gradio_the_extra_is_named(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["chat", str(run), "--port", "0"]) == 2
    assert "gradio is not installed. Fix: install it: pip install 'unlora[chat]'" in capsys.readouterr().err
