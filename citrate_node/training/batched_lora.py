"""LoRA factors of many adapters on one frozen model: each row of a batch sees only its own adapter.

The factors of all adapters are stacked, one tensor per module and factor, and forward hooks add each row's
update to what the frozen module gives: the model itself is left as it is, whatever kind of linear layer it
has. Called by batched.py, which trains and measures, and usable by whoever serves many adapters in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from citrate_node.training.settings import Moving

Weights = Mapping[str, npt.NDArray[np.float32]]
"""PEFT's saved tensor name -> float32 array."""

_STEM = "base_model.model."
_NAME_A, _NAME_B = ".lora_A.weight", ".lora_B.weight"


class StackedLora:
    """Adapters 0 to K - 1, held as (K, rank, in_features) and (K, out_features, rank) per module.

    model: a transformers model without PEFT; any of its linear layers may carry factors. shapes: PEFT's
    tensor names and shapes (BaseModel.tensor_shapes); of the rank nothing depends. scaling: alpha / rank.
    Source of the idea of serving many adapters in one pass: Punica, Chen et al. 2023, arXiv:2310.18547.
    """

    def __init__(self, model: Any, shapes: Mapping[str, tuple[int, ...]], scaling: float) -> None:
        self.shapes = dict(shapes)
        self.scaling = scaling
        self.count = 0
        self._tensors: dict[str, Any] = {}
        self._rows_of: Any = None
        modules = dict(model.named_modules())
        self._device = next(model.parameters()).device
        self._hooks = []
        for name_a in sorted(name for name in shapes if name.endswith(_NAME_A)):
            path = name_a.removeprefix(_STEM).removesuffix(_NAME_A)
            if path not in modules:
                raise ValueError(f"the model has no module {path}")
            self._hooks.append(modules[path].register_forward_hook(self._hook(name_a)))

    def close(self) -> None:
        """Take the hooks off: the model is as it was before."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._tensors.clear()

    def load(self, adapters: Sequence[Weights | None], scalings: Sequence[float] | None = None) -> None:
        """Hold these adapters instead of those before. None: the base model alone.

        Adapters, and modules of one, may be of any rank: those below the largest are filled up with zeros.
        scalings: alpha / rank of each where they are not all the one given at the start.
        Raises ValueError for the tensors of another adapter, for NaN and infinity, and for a scaling of only
        some of them.
        """
        import torch

        if not adapters or (scalings is not None and len(scalings) != len(adapters)):
            raise ValueError(f"{len(adapters)} adapters with {len(scalings or ())} scalings")
        for adapter in {id(adapter): adapter for adapter in adapters}.values():
            if adapter is not None:
                self._check(adapter)
        self.count = len(adapters)
        names_a = [name for name in self.shapes if name.endswith(_NAME_A)]
        rank = max((len(each[name]) for each in adapters if each is not None for name in names_a), default=1)
        for name, (rows, columns) in self.shapes.items():
            shape = (rank, columns) if name.endswith(_NAME_A) else (rows, rank)
            stacked = np.zeros((self.count, *shape), dtype=np.float32)
            for place, adapter in enumerate(adapters):
                if adapter is not None:
                    array = adapter[name]
                    stacked[place, : array.shape[0], : array.shape[1]] = array
            if not np.isfinite(stacked).all():
                raise ValueError(f"weights: {name} holds NaN or infinity")
            if scalings is not None and name.endswith(_NAME_B):
                ratios = np.array([each / self.scaling for each in scalings], dtype=np.float32)
                stacked *= ratios[:, None, None]
            self._tensors[name] = torch.from_numpy(stacked).to(self._device)
        self.rows(None)

    def learn(self, moving: Moving) -> list[tuple[str, Any]]:
        """Let one factor, or both, take gradients. Returns (PEFT name, stacked tensor) of those that do."""
        learning = []
        for name, tensor in sorted(self._tensors.items()):
            learns = moving == "both" or f".{moving}." in name
            tensor.requires_grad_(learns)
            tensor.grad = None
            if learns:
                learning.append((name, tensor))
        return learning

    def rows(self, adapter_of_row: npt.NDArray[np.int64] | None) -> None:
        """Which adapter each row of the next passes sees, (rows,). None: rows are shared out evenly and in
        order, the first of them to adapter 0, which needs no copy of the factors per row."""
        import torch

        if adapter_of_row is None:
            self._rows_of = None
            return
        if adapter_of_row.size == 0 or not 0 <= adapter_of_row.min() <= adapter_of_row.max() < self.count:
            raise ValueError(f"a row names an adapter that is none of the {self.count}")
        self._rows_of = torch.from_numpy(adapter_of_row.astype(np.int64)).to(self._device)

    def current(self) -> list[dict[str, npt.NDArray[np.float32]]]:
        """A copy of every adapter's tensors, sorted by name.

        Raises ValueError, naming the adapter and the tensor, where one is no longer finite.
        """
        stacked = {name: tensor.detach().cpu().numpy().copy() for name, tensor in self._tensors.items()}
        for name, array in stacked.items():
            if not np.isfinite(array).all():
                odd = [place for place in range(self.count) if not np.isfinite(array[place]).all()]
                raise ValueError(f"adapter {odd[0]}: {name} holds NaN or infinity")
        return [{name: stacked[name][place] for name in sorted(stacked)} for place in range(self.count)]

    def _check(self, adapter: Weights) -> None:
        if odd := sorted(adapter.keys() ^ self.shapes.keys()):
            raise ValueError(
                f"these are not the tensors of this adapter: {len(odd)} differ, such as {odd[0]}"
            )
        for name, array in adapter.items():
            rows, columns = self.shapes[name]
            rank = len(adapter[name.removesuffix(_NAME_B).removesuffix(_NAME_A) + _NAME_A])
            wanted = (rank, columns) if name.endswith(_NAME_A) else (rows, rank)
            if array.shape != wanted:
                raise ValueError(f"{name} has shape {array.shape}, a module of rank {rank} wants {wanted}")

    def _hook(self, name_a: str) -> Any:
        name_b = name_a.removesuffix(_NAME_A) + _NAME_B

        def add_update(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
            import torch

            if name_a not in self._tensors:
                return output
            lora_a, lora_b = self._tensors[name_a], self._tensors[name_b]
            if self._rows_of is not None:
                lora_a, lora_b = lora_a[self._rows_of], lora_b[self._rows_of]
            # (groups, tokens, features): a group is one row, or all rows of one adapter
            groups = len(lora_a)
            x = inputs[0].reshape(groups, -1, inputs[0].shape[-1])
            inner = torch.bmm(x, lora_a.transpose(1, 2))
            flat = output.reshape(groups, -1, output.shape[-1])
            added = torch.baddbmm(flat, inner, lora_b.transpose(1, 2), alpha=self.scaling)
            return added.reshape(output.shape)

        return add_update
