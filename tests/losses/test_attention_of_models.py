"""What the terms on attention compare is the attention that a model of transformers itself returns."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from kdray.losses.attention_maps import AttentionMaps
from kdray.losses.states import Needs
from kdray.students.layers import transformer_layers
from kdray.students.recording import Recorder
from tests.losses.inner_states import IS_TOKEN, LENGTHS, B, L

LAYERS = frozenset({1, 2})


@pytest.mark.parametrize("heads", [(2, 2), (2, 4)])
def test_the_divergence_is_that_of_the_attention_that_transformers_returns(heads: tuple[int, int]) -> None:
    recorded, returned = [], []
    ids = torch.randint(1, 40, (B, L), generator=torch.Generator().manual_seed(0))
    for seed, each in enumerate(heads):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": each, "intermediate_size": 8}
        # Large weights, so that tokens do not look at all others alike.
        model = BertForSequenceClassification(BertConfig(vocab_size=40, initializer_range=1.0, **sizes)).eval()
        with torch.no_grad(), Recorder(model, transformer_layers(model), Needs(attention=LAYERS)) as recorder:
            model(input_ids=ids, attention_mask=IS_TOKEN.long())
            recorded.append(recorder.take().attention)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            outputs = model(input_ids=ids, attention_mask=IS_TOKEN.long(), output_attentions=True)
        returned.append(outputs.attentions)
    for layer in LAYERS:
        maps = [attentions[layer - 1] for attentions in returned]
        if heads[0] != heads[1]:
            maps = [each.mean(dim=1, keepdim=True) for each in maps]
        expected_N = [
            (t * (t / s).log()).sum(dim=-1).mean()
            for row, length in enumerate(LENGTHS)
            for place in range(length)
            for s, t in [[each[row, :, place, :length] for each in maps]]
        ]
        values_N = AttentionMaps().values(recorded[0][layer], recorded[1][layer], IS_TOKEN)
        torch.testing.assert_close(values_N, torch.stack(expected_N), rtol=1e-4, atol=1e-5)
        assert values_N.max() > 0.05
