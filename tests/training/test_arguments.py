"""Training arguments of transformers that are refused before anything is loaded."""

import pytest
import torch

from unlora import InputError, UnlearnConfig
from unlora.cli import main
from unlora.common.errors import raise_if
from unlora.training.arguments import batch_problems
from unlora.training.finetune import FinetuneConfig

CONFIGS = pytest.mark.parametrize("config", [UnlearnConfig, FinetuneConfig])


@CONFIGS
@pytest.mark.parametrize("name", ["deepspeed", "fsdp"])
def test_sharding_of_a_model_that_trains_is_refused_with_what_to_use_instead(config, name, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=rf"{name}='full_shard'.*shard_base"):
        config(output_dir=str(tmp_path), use_cpu=True, **{name: "full_shard"})
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")  # set by `accelerate launch`
    with pytest.raises(InputError, match=f"{name}='ACCELERATE_USE_{name.upper()}=true'"):
        config(output_dir=str(tmp_path), use_cpu=True)


def checked(config, **arguments):
    """Return the configuration after the checks of its command. An `UnlearnConfig` already raises its own problems."""
    args = config(**arguments)
    raise_if(args.problems())
    return args


@CONFIGS
def test_liger_s_kernels_need_a_gpu(config, tmp_path):
    with pytest.raises(InputError, match="use_liger_kernel=True: the Liger kernels need a GPU"):
        checked(config, output_dir=str(tmp_path), use_cpu=True, use_liger_kernel=True)


@CONFIGS
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            "load_best_model_at_end=",
        ),
        (
            {"save_strategy": "best", "metric_for_best_model": "x"},
            "save_strategy='best': neither training",
        ),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}, "lr_scheduler_type='reduce_lr_on"),
        (
            {"metric_for_best_model": "model_utility"},
            "metric_for_best_model='model_utility': neither training",
        ),
    ],
)
def test_settings_that_depend_on_an_evaluation_metric_are_refused(config, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        checked(config, output_dir=str(tmp_path), use_cpu=True, **settings)


@pytest.mark.parametrize(("name", "value"), [("eval_strategy", "epoch"), ("eval_on_start", True)])
def test_fine_tuning_evaluates_nothing(tmp_path, name, value):
    with pytest.raises(InputError, match=f"{name}=.*evaluate checkpoints with `unlora evaluate`"):
        checked(FinetuneConfig, output_dir=str(tmp_path), use_cpu=True, **{name: value})


@CONFIGS
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_rl": 0.1}}, "lr_scheduler_kwargs="),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "x"}}, "lr_scheduler_kwargs="),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"power": 1}}, "lr_scheduler_kwargs=.*no settings"),
        ({"optim_args": "momentum=0.9"}, "optim_args='momentum=0.9': it has no effect on"),
        ({"optim": "rmsprop", "optim_args": "momentun=0.9"}, "optim_args='momentun=0.9'"),
        ({"gradient_checkpointing_kwargs": {"use_reentrent": True}}, "gradient_checkpointing_kwargs='use_reentrent'"),
        (
            {"gradient_checkpointing_kwargs": {"every_n_layers": 0}},
            r"gradient_checkpointing_kwargs\['every_n_layers'\]=0",
        ),
        ({"gradient_checkpointing_kwargs": {"determinism_check": "x"}}, r"\['determinism_check'\]='x': unknown name"),
        ({"gradient_checkpointing_kwargs": {"early_stop": 3}}, r"gradient_checkpointing_kwargs\['early_stop'\]=3"),
        (
            {"gradient_checkpointing_kwargs": {"debug": True, "use_reentrant": True}},
            "gradient_checkpointing_kwargs=.*debug",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type='cosine_with_min_lr'.*Fix: give lr_sch"),
        (
            {"lr_scheduler_type": "polynomial", "max_steps": 2, "warmup_steps": 2},
            "lr_scheduler_type=.*division by zero",
        ),
        ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type='greedy'"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 0.5}}, "lr_scheduler_kwargs=.*lr_end"),
        ({"accelerator_config": '{"nothing": 1}'}, "accelerator_config=.*nothing"),
        ({"accelerator_config": "nothing.json"}, "accelerator_config='nothing.json'"),
        ({"accelerator_config": {"even_batches": "x"}}, r"accelerator_config\['even_batches'\]='x'"),
        ({"accelerator_config": {"gradient_accumulation_kwargs": {"a": 1}}}, "accelerator_config=.*unexpected.*'a'"),
        ({"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}}, "accelerator_config=.*num_steps"),
        ({"optim_target_modules": ["q_proj"]}, "optim_target_modules=.*no effect on adamw_torch_fused"),
        ({"torch_compile_backend": "foo"}, "torch_compile_backend='foo': unknown name"),
        ({"torch_compile_mode": "foo"}, "torch_compile=.*'foo'"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers=True.*set --dataloader_num_workers"),
        ({"fsdp_config": {"a": 1}}, "fsdp_config=.*shard_base"),
        ({"fp16": True, "bf16": True}, "fp16=True: transformers refuses it"),
    ],
)
def test_settings_that_a_library_rejects_are_refused_by_name(config, tmp_path, changes, told):
    with pytest.raises(InputError, match=told):
        checked(config, output_dir=str(tmp_path), use_cpu=True, **changes)


@CONFIGS
def test_valid_settings_are_accepted(config, tmp_path):
    good = [
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 5}},
        {"lr_scheduler_type": "inverse_sqrt"},
        {"gradient_checkpointing_kwargs": {"use_reentrant": False, "every_n_layers": 2}},
        {"accelerator_config": '{"even_batches": false}'},
    ]
    for changes in good:
        assert checked(config, output_dir=str(tmp_path), use_cpu=True, **changes)


@CONFIGS
def test_an_unusable_hub_is_reported_before_training(config, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for name, told in (
        ("owner/name", "push_to_hub='owner/name': the Hub cannot be used"),
        ("a b", "push_to_hub='a b'"),
    ):
        with pytest.raises(InputError, match=told):
            checked(config, output_dir=str(tmp_path), use_cpu=True, push_to_hub=True, hub_model_id=name)


@CONFIGS
def test_batches_that_are_all_dropped_are_refused(config, tmp_path):
    args = checked(
        config, output_dir=str(tmp_path), per_device_train_batch_size=4, dataloader_drop_last=True, use_cpu=True
    )
    assert not batch_problems(args, 4)
    assert [problem.argument for problem in batch_problems(args, 3)] == ["dataloader_drop_last"]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU to run them on")
def test_the_command_refuses_liger_kernels_without_a_gpu_and_writes_nothing(tmp_path, capsys):
    argv = ["--model_name_or_path", "model", "--output_dir", str(tmp_path / "run"), "--use_liger_kernel", "true"]
    assert main(["finetune", *argv, "--train_data", "rows.jsonl"]) == 2
    assert "use_liger_kernel=True" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
