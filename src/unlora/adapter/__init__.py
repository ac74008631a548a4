"""The LoRA adapter: its initialisation, the offset that cancels it at step 0, and its export for the original base."""

from unlora.adapter.export import compression, export_adapter
from unlora.adapter.factorise import weighted_low_rank
from unlora.adapter.offset import attach_adapters, attach_factors, detach_adapters, reference_model
from unlora.adapter.settings import adapter_notes, check_adapter_settings

__all__ = [
    "adapter_notes",
    "attach_adapters",
    "attach_factors",
    "check_adapter_settings",
    "compression",
    "detach_adapters",
    "export_adapter",
    "reference_model",
    "weighted_low_rank",
]
