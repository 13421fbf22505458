"""DeepSpeed's ZeRO, stages 1 and 2: weights whole on each card, moments (2: summed gradients too) cut over the cards.

DeepSpeed cuts, adds gradients up over the ranks, and gathers the moved weights, all in FP32. What an update promises is
decided in `train.step` as everywhere: the weight of a label token, autocast and loss scale, the norm, the clip, the
skip. The engine therefore has no scale and no clip, and its own `step`, which would decide these, is not called.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from train.exchange import Exchange
from train.ranks import Ranks

BUCKET = 50_000_000  # numbers that are sent at once; DeepSpeed sets two such buffers aside
STAGES = {"deepspeed_zero1": 1, "deepspeed_zero2": 2}
MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroExchange(Exchange):
    """Drive DeepSpeed's engine around an optimiser, whose parameters become flat pieces: one a group, for this rank."""

    def __init__(
        self, objective: nn.Module, optimizer: Optimizer, accelerator: Accelerator, ranks: Ranks, *, stage: int
    ) -> None:
        """Cut the optimiser over the ranks.

        Args:
            objective: with autocast around it, and no DDP.
            optimizer: over whole parameters; changed in place.
            accelerator: of the process.
            ranks: that share the work; moments are put together over their group, on the host.
            stage: 1 or 2.

        Raises:
            RuntimeError: if DeepSpeed is not installed.
        """
        engine = _build_engine(objective, optimizer, stage)
        super().__init__(engine, optimizer, accelerator)
        self.ranks = ranks
        self._zero = engine.optimizer
        self.optimizer.state.clear()  # of a step with zero gradients, which DeepSpeed makes for some optimisers
        self.refresh()
        self.clear()

    @contextlib.contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Tell the engine whether this micro-batch is the last one; then take the sum from it."""
        self.objective.set_gradient_accumulation_boundary(is_last)  # type: ignore[operator]
        yield
        if is_last:
            self._take_gradients()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss, without the division by the number of micro-batches."""
        self.objective.backward(loss, scale_wrt_gas=False)  # type: ignore[operator]

    def norm(self) -> Tensor:
        """Return the norm of the gradient over the pieces of all ranks."""
        # In FP64, since a piece is one tensor of up to a thousand million numbers.
        norms = [torch.linalg.vector_norm(piece.grad, dtype=torch.float64) for piece in self.parameters]
        square = torch.stack(norms).square().sum()
        dist.all_reduce(square)
        return square.sqrt().float()

    def clear(self) -> None:
        """Forget all gradients, also those that the engine has added up."""
        super().clear()
        self._zero.zero_grad(set_to_none=True)
        self._zero.micro_step_id = -1  # the next micro-batch begins a sum
        for sums in (self._zero.averaged_gradients, self._zero.all_grad_tensors):
            for group in sums:
                sums[group] = None

    def step(self) -> None:
        """Move this rank's piece of the weights, and gather those of the others."""
        self.optimizer.step()
        self._zero.update_lp_params()

    def refresh(self) -> None:
        """Copy this rank's piece out of the weights."""
        self._zero.refresh_fp32_params()

    def state(self) -> dict[str, Any]:
        """Put the moments together on rank 0, as an optimiser over whole parameters has them; others get none.

        Such a checkpoint has no trace of DeepSpeed: any number of processes may go on from it, sharded or not.
        """
        groups: list[dict[str, Any]] = []
        entries: dict[int, dict[str, Tensor]] = {}
        num_before = 0
        for group, held in zip(self.optimizer.param_groups, self._zero.bit16_groups, strict=True):
            state = self.optimizer.state[group["params"][0]]
            ids = range(num_before, num_before + len(held))
            num_before += len(held)
            groups.append({**group, "params": list(ids)})
            for name in MOMENTS if state else ():  # there are none before the first update that is applied
                flat = self._gather(state[name])
                if flat is None:
                    continue
                for index, (start, parameter) in zip(ids, _places(held), strict=True):
                    entry = entries.setdefault(index, {"step": state["step"].clone()})
                    entry[name] = flat[start : start + parameter.numel()].view(parameter.shape)
        return {"state": entries, "param_groups": groups}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Take this rank's piece out of whole moments.

        Raises:
            ValueError: if they belong to other parameters.
        """
        self.optimizer.state.clear()
        num_before = 0
        for group, saved, held in zip(
            self.optimizer.param_groups, state["param_groups"], self._zero.bit16_groups, strict=True
        ):
            group.update({key: value for key, value in saved.items() if key != "params"})
            piece = group["params"][0]
            own = self.optimizer.state[piece] if state["state"] else {}
            for index, (start, parameter) in enumerate(_places(held), num_before):
                entry = state["state"].get(index, {})
                for name in MOMENTS if entry else ():
                    if entry[name].shape != parameter.shape:
                        raise ValueError("the checkpoint belongs to another model or finetune=; take a new run.dir=")
                    moments = own.setdefault(name, torch.zeros_like(piece))
                    _copy_overlap(moments, self.ranks.rank * len(piece), entry[name].reshape(-1), start)
                    own["step"] = entry["step"].to(piece.device, copy=True)
            num_before += len(held)

    def _take_gradients(self) -> None:
        """Make the sum over micro-batches and ranks the gradient of this rank's pieces."""
        for i, piece in enumerate(self._zero.single_partition_of_fp32_groups):
            flat = torch.cat([part.reshape(-1) for part in self._zero.averaged_gradients[i]])
            piece.grad = nn.functional.pad(flat, (0, piece.numel() - flat.numel()))
            self._zero.averaged_gradients[i] = None

    def _gather(self, piece: Tensor) -> Tensor | None:
        own = piece.cpu()
        leads = self.ranks.rank == 0
        pieces = [torch.empty_like(own) for _ in range(self.ranks.world_size)] if leads else None
        dist.gather(own, pieces, group=self.ranks.group)
        return None if pieces is None else torch.cat(pieces)


def _build_engine(objective: nn.Module, optimizer: Optimizer, stage: int) -> Any:
    try:
        import deepspeed
    except ImportError as e:
        raise RuntimeError(
            "DeepSpeed is not installed: pip install 'mezzavoce[deepspeed]', or use trainer.shard=zero2"
        ) from e
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # An exchange between processes of one CPU through shared memory, which would be compiled at the start, for minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = {
        "train_micro_batch_size_per_gpu": 1,  # of no account
        "gradient_accumulation_steps": 1,  # see `micro_batch`
        "gradient_clipping": 0.0,
        "steps_per_print": 1 << 60,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "round_robin_gradients": False,  # pieces of moments are put together in the order of the parameters
        },
    }
    return deepspeed.initialize(model=objective, optimizer=optimizer, config=config, dist_init_required=False)[0]


def _places(parameters: list[Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yield where each parameter begins in the flat tensor of its group."""
    start = 0
    for parameter in parameters:
        yield start, parameter
        start += parameter.numel()


def _copy_overlap(piece: Tensor, first: int, source: Tensor, start: int) -> None:
    """Copy what a piece, which begins at `first`, holds of a source, which begins at `start`."""
    begin, end = max(first, start), min(first + len(piece), start + len(source))
    if begin < end:
        piece[begin - first : end - first].copy_(source[begin - start : end - start])
