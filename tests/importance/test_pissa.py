import torch

from unlora.adapter import attach_adapters
from unlora.adapter.offset import lora_layers
from unlora.importance.pissa import row_importance


def test_pissa_starts_at_the_principal_part_of_each_weight(measurement):
    given = measurement(init="pissa")
    model = attach_adapters(given.model, given.adapter, row_importance(given))
    for _, layer in lora_layers(model):
        u, s, vh = torch.linalg.svd(layer.get_base_layer().weight)
        start = 2 * layer.lora_B["unlearn"].weight @ layer.lora_A["unlearn"].weight
        # The difference is due to δ, which keeps rows of importance 0 finite. Here it changes each row by 1e-5 of it.
        torch.testing.assert_close(start, (u[:, :4] * s[:4]) @ vh[:4], rtol=1e-3, atol=1e-4)
