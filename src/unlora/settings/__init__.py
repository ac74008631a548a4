"""Everything that a user sets, as dataclasses: each default, help text and check once. Imports only `common`."""

from unlora.settings.attack import AttackConfig
from unlora.settings.chat import ChatConfig
from unlora.settings.data import PROMPT_FORMATS, DataConfig, TextConfig, TrainDataConfig
from unlora.settings.evaluation import (
    EvalConfig,
    EvalSettings,
    MembershipConfig,
    MuseConfig,
    ReportedConfig,
    TargetConfig,
    TaskSettings,
)
from unlora.settings.export import ExportConfig
from unlora.settings.importance import GRANULARITIES, SMOOTHING, ImportanceConfig
from unlora.settings.model import ModelConfig
from unlora.settings.stopping import STOP_STATISTICS, StoppingConfig
from unlora.settings.training import FinetuneSettings, UnlearnSettings

__all__ = [
    "GRANULARITIES",
    "PROMPT_FORMATS",
    "SMOOTHING",
    "STOP_STATISTICS",
    "AttackConfig",
    "ChatConfig",
    "DataConfig",
    "EvalConfig",
    "EvalSettings",
    "ExportConfig",
    "FinetuneSettings",
    "ImportanceConfig",
    "MembershipConfig",
    "ModelConfig",
    "MuseConfig",
    "ReportedConfig",
    "StoppingConfig",
    "TargetConfig",
    "TaskSettings",
    "TextConfig",
    "TrainDataConfig",
    "UnlearnSettings",
]
