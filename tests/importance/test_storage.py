import pytest
import torch
from safetensors.torch import save_file

from unlora.common.errors import InputError
from unlora.importance.storage import importance_key, load_importance, save_importance

IMPORTANCE = {"layers.0.q_proj": torch.rand(5, 7), "layers.1.q_proj": torch.rand(5)}
DATA = [[{"input_ids": [1, 2], "labels": [-100, 2]}], [{"input_ids": [3, 4], "labels": [3, 4]}]]
SETTINGS = {"sigma": 0.05, "smoothing": "relative"}


def test_what_is_read_is_what_was_written(tmp_path):
    given = {**IMPORTANCE, "view": torch.rand(4, 3).T}
    save_importance(given, tmp_path / "i.safetensors", "key", SETTINGS)
    read = load_importance(tmp_path / "i.safetensors", "key")
    assert read.keys() == given.keys()
    assert all(torch.equal(read[name], value) for name, value in given.items())


def test_a_file_for_another_key_is_refused_with_its_settings(tmp_path):
    save_importance(IMPORTANCE, tmp_path / "i.safetensors", "key", SETTINGS)
    with pytest.raises(InputError, match=r"importance_file=.*another model, data or settings.*0\.05"):
        load_importance(tmp_path / "i.safetensors", "other")


def test_a_cut_file_is_refused(tmp_path):
    file = tmp_path / "i.safetensors"
    save_importance(IMPORTANCE, file, "key", SETTINGS)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=f"importance_file='{file}'.*cannot be read"):
        load_importance(file, "key")


@pytest.mark.parametrize("content", [b"", b"no safetensors at all"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "i.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_importance(tmp_path / "i.safetensors", "key")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match="importance_file="):
            load_importance(path, "key")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_somebody_elses_safetensors_file_is_refused(tmp_path, metadata):
    save_file(IMPORTANCE, tmp_path / "i.safetensors", metadata=metadata)
    with pytest.raises(InputError, match="does not hold an importance that unlora wrote"):
        load_importance(tmp_path / "i.safetensors", "key")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "i.safetensors"
    save_importance(IMPORTANCE, file, "key", SETTINGS)
    before = file.read_bytes()
    shared = torch.rand(3)
    with pytest.raises(RuntimeError, match="share memory"):
        save_importance({"a": shared, "b": shared}, file, "key", SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == before


def test_equal_inputs_have_equal_keys(tiny_model):
    first, second = (importance_key(tiny_model("llama"), DATA, SETTINGS) for _ in range(2))
    assert first == second
    assert importance_key(tiny_model("llama"), iter(DATA), dict(reversed(SETTINGS.items()))) == first


def test_the_key_changes_with_a_single_weight(tiny_model):
    model = tiny_model("llama")
    before = importance_key(model, DATA, SETTINGS)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.up_proj.weight
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(10.0))
    assert importance_key(model, DATA, SETTINGS) != before


def test_the_key_changes_with_the_precision_of_the_weights(tiny_model):
    half = tiny_model("llama").to(torch.bfloat16)
    assert importance_key(half, DATA, SETTINGS) != importance_key(half.float(), DATA, SETTINGS)


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (DATA[::-1], SETTINGS),
        (DATA[:1], SETTINGS),
        ([DATA[0], [{"input_ids": [3, 4], "labels": [-100, 4]}]], SETTINGS),
        (DATA, {**SETTINGS, "sigma": 0.06}),
        (DATA, {"sigma": 0.05}),
    ],
)
def test_the_key_changes_with_data_and_settings(tiny_model, data, settings):
    model = tiny_model("llama")
    assert importance_key(model, data, settings) != importance_key(model, DATA, SETTINGS)
