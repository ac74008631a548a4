"""All user settings as dataclasses. Defaults, help texts and checks are defined only here.

This package imports only `common`, so that `--help` does not wait for torch.
"""

from unlora.settings.attack import AttackConfig
from unlora.settings.chat import ChatConfig
from unlora.settings.commands import (
    BenchConfig,
    CompareConfig,
    DryRunConfig,
    LoadedRunConfig,
    LsConfig,
    QuickstartConfig,
    RunConfig,
    ValidateConfig,
    VerifyConfig,
)
from unlora.settings.data import DataConfig, TextConfig, TrainDataConfig
from unlora.settings.evaluation import (
    BenchmarkSettings,
    EvalConfig,
    EvalSettings,
    EvaluateConfig,
    LogConfig,
    MembershipConfig,
    OwnSetsSettings,
    ReportedConfig,
    TargetConfig,
    TaskSettings,
    TofuSettings,
    is_log,
)
from unlora.settings.export import ExportConfig
from unlora.settings.importance import GRANULARITIES, SMOOTHING, ImportanceConfig
from unlora.settings.model import ModelConfig
from unlora.settings.stopping import STOP_STATISTICS, StoppingConfig
from unlora.settings.training import FinetuneSettings, UnlearnSettings

__all__ = [
    "GRANULARITIES",
    "SMOOTHING",
    "STOP_STATISTICS",
    "AttackConfig",
    "BenchConfig",
    "BenchmarkSettings",
    "ChatConfig",
    "CompareConfig",
    "DataConfig",
    "DryRunConfig",
    "EvalConfig",
    "EvalSettings",
    "EvaluateConfig",
    "ExportConfig",
    "FinetuneSettings",
    "ImportanceConfig",
    "LoadedRunConfig",
    "LogConfig",
    "LsConfig",
    "MembershipConfig",
    "ModelConfig",
    "OwnSetsSettings",
    "QuickstartConfig",
    "ReportedConfig",
    "RunConfig",
    "StoppingConfig",
    "TargetConfig",
    "TaskSettings",
    "TextConfig",
    "TofuSettings",
    "TrainDataConfig",
    "UnlearnSettings",
    "ValidateConfig",
    "VerifyConfig",
    "is_log",
]
