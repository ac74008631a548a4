"""Where the LoRA adapter starts, the offset that cancels it at step 0, and the export for the untouched base."""

from unlora.adapter.export import export_adapter
from unlora.adapter.factorise import weighted_low_rank
from unlora.adapter.offset import attach_adapters, attach_probe, check_adapter_settings, reference_model

__all__ = [
    "attach_adapters",
    "attach_probe",
    "check_adapter_settings",
    "export_adapter",
    "reference_model",
    "weighted_low_rank",
]
