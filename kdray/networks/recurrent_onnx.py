"""A recurrent layer of both directions as one operator of ONNX, for the export of a model.

torch's exporter translates a cell of torch, too, but it takes the length of the states for a constant, that of the
example, and fails or warns because of it. The operator of ONNX reads each row backwards from its own end by itself.

Letters: B rows of a batch, L tokens, E embedding width, H width of one direction, G gates of a cell.
"""

from typing import Any

import torch
from torch import Tensor, nn

GATES: dict[type[nn.RNNBase], tuple[int, ...]] = {nn.LSTM: (0, 3, 1, 2), nn.GRU: (1, 0, 2)}
"""The gates of torch in the order of ONNX. LSTM: input, output, forget, cell; GRU: update, reset, hidden."""


def onnx_states(forwards: nn.RNNBase, backwards: nn.RNNBase, inputs_BxLxE: Tensor, lengths_B: Tensor) -> Tensor:
    """The states of both cells (B x L x 2H); those of padding are 0. Only for a model that is being exported."""
    cells = (forwards, backwards)
    weights = torch.stack([_in_order(cell, "weight_ih_l0") for cell in cells])  # 2 x GH x E
    recurrences = torch.stack([_in_order(cell, "weight_hh_l0") for cell in cells])  # 2 x GH x H
    biases = torch.stack([torch.cat([_in_order(cell, "bias_ih_l0"), _in_order(cell, "bias_hh_l0")]) for cell in cells])
    attributes: dict[str, Any] = {"hidden_size": forwards.hidden_size, "direction": "bidirectional"}
    if isinstance(forwards, nn.GRU):
        attributes["linear_before_reset"] = 1  # as torch computes it: the reset gate comes after the matrix product
    rows, tokens, _ = inputs_BxLxE.shape
    states_Lx2xBxH = torch.onnx.ops.symbolic(
        "GRU" if isinstance(forwards, nn.GRU) else "LSTM",
        (inputs_BxLxE.transpose(0, 1), weights, recurrences, biases, lengths_B.int()),
        attributes,
        dtype=inputs_BxLxE.dtype,
        shape=(tokens, 2, rows, forwards.hidden_size),
    )
    return states_Lx2xBxH.permute(2, 0, 1, 3).flatten(2)


def _in_order(cell: nn.RNNBase, name: str) -> Tensor:
    """A parameter of the cell with its gates in the order of ONNX (GH, or GH x E, or GH x H)."""
    parameter: Tensor = getattr(cell, name)
    # Slices and not `split`, whose node is not folded into the stored weights (`kdray.forms.graphs`).
    width = cell.hidden_size
    return torch.cat([parameter[gate * width : (gate + 1) * width] for gate in GATES[type(cell)]])
