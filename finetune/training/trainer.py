"""transformers' Trainer for groups: its loop, our batches, loss and evaluation."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from rerank_plugin.engine.scorer import Scorer
from rerank_plugin.errors import OptionError
from rerank_plugin.io.atomic import saving
from rerank_plugin.model.loaded import quiet_transformers
from rerank_plugin.model.loading import load_model

from ..data.dataset import GroupDataset
from ..data.sampling import GroupBatches
from ..evaluation.scoring import Evaluation, evaluate_groups, interleaved
from ..losses.base import Loss
from .arguments import refused_options
from .checkpoint import (
    RESUMES,
    random_states,
    read_optimizer,
    read_record,
    remove_others,
    restore_random_states,
    write_checkpoint,
    write_optimizer,
    write_record,
)
from .collapse_guard import CollapseGuard, StepRecord
from .collator import Batch, GroupCollator, GroupLoader, SampledGroups, part_logits
from .distributed import gathered, wait
from .sharding import check_saves_whole, cut_at_layers, unsynchronized
from .stopwatch import Stopwatch


class Carried(Protocol):
    """Something whose state goes from an interrupted run to the one that resumes it."""

    def as_record(self) -> Any:
        """Its state as JSON."""
        ...

    def restore(self, record: Any) -> None:
        """Take over a state that `as_record` gave."""
        ...


class RerankTrainer(Trainer):
    """Trains on groups, evaluates with the scorer that serves.

    Args:
        model: The model to train.
        args: transformers' training arguments.
        scorer: Scores pairs with the same model.
        loss: The loss of a batch of groups.
        train_groups: Groups to train on.
        eval_groups: Groups to evaluate on, with all their candidates.
        group_size: Passages of a group in a step.
        stopwatch: Is paused while evaluating and saving.
        guard: Is told of every step.
    """

    # The loss is divided by the groups of the whole optimizer step, not once per micro-batch.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        scorer: Scorer,
        loss: Loss,
        train_groups: GroupDataset,
        eval_groups: GroupDataset,
        group_size: int,
        stopwatch: Stopwatch,
        guard: CollapseGuard,
    ) -> None:
        self.scorer = scorer
        self.loss = loss
        self.train_groups = SampledGroups(train_groups, size=group_size, seed=args.seed)
        self.eval_groups = eval_groups
        self.stopwatch = stopwatch
        self.guard = guard
        #: What goes from an interrupted run to the one that resumes it, by name.
        self.carried: dict[str, Carried] = {"stopwatch": stopwatch, "guard": guard}
        self._latest: Evaluation | None = None
        #: Whether the scorer has a whole model, after a run on parts of one.
        self._is_whole_again = False
        #: Of the optimizer step: loss, loss at chance, spread of logits, lowest loss; sums over
        #: groups.
        self._sums = torch.zeros(4)
        self._step_groups = 1
        #: Pairs that training steps of this process have seen.
        self.train_pairs = 0
        with refused_options():
            super().__init__(
                model=model,
                args=args,
                data_collator=GroupCollator(scorer),
                train_dataset=self.train_groups,
                # transformers asks for one where there is an evaluation strategy; `evaluate` is
                # ours.
                eval_dataset=eval_groups,
                processing_class=scorer.encoder.tokenizer,
            )
        check_checkpointing(model, args)
        if self.is_fsdp_enabled:
            cut_at_layers(model)
        if self.is_deepspeed_enabled:
            check_saves_whole(self.accelerator.state.deepspeed_plugin.deepspeed_config)

    @property
    def latest(self) -> Evaluation:
        """The latest evaluation, query by query."""
        assert self._latest is not None, "no evaluation yet"
        return self._latest

    def get_train_dataloader(self) -> GroupLoader:
        """The batches of this process; accelerate's own sharding would repeat or lose groups."""
        args = self.args
        batches = GroupBatches(
            len(self.train_groups),
            batch_size=args.per_device_train_batch_size,
            seed=args.seed,
            rank=args.process_index,
            processes=args.world_size,
        )
        return GroupLoader(
            self.train_groups,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            # Workers' seeds are not drawn from the numbers that dropout draws from.
            generator=torch.Generator().manual_seed(args.seed),
        )

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor:
        self._step_groups = sum(gathered(sum(batch["groups"] for batch in batch_samples)))
        return torch.tensor(self._step_groups, device=device)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Transformers' optimizer; an option that it cannot use is an error of one line."""
        with refused_options():
            return super().create_optimizer(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Transformers' schedule; an option that it cannot use is an error of one line."""
        with refused_options():
            return super().create_scheduler(num_training_steps, optimizer)

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        # A run that was interrupted behind its last step has nothing left to do, and transformers
        # looks for the end behind a step only.
        if not self.control.should_training_stop:
            super()._run_epoch(*arguments, **named)  # type: ignore[no-untyped-call]

    def training_step(
        self,
        model: nn.Module,
        inputs: Batch,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Forward and backward part by part; returns the loss of all groups.

        Every process takes the same number of parts, or some would wait for others for ever.
        """
        parts, counts = list(inputs["parts"]), float(inputs["groups"] > 0)
        weights = [counts] * len(parts)
        missing = max(gathered(len(parts))) - len(parts)
        parts, weights = parts + parts[-1:] * missing, weights + [0.0] * missing
        losses = []
        for number, (part, weight) in enumerate(zip(parts, weights, strict=True), 1):
            with nullcontext() if number == len(parts) else self._gradients_kept(model):
                weighted = {**part, "weight": weight}
                losses.append(super().training_step(model, weighted, num_items_in_batch))
        return torch.stack(losses).sum()

    def _gradients_kept(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Gradients are exchanged behind the last part alone."""
        if self.accelerator.distributed_type == DistributedType.FSDP:
            return nullcontext()
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            # Its backward makes the optimizer's step too.
            return unsynchronized(self.accelerator.gradient_state)
        kept: AbstractContextManager[Any] = self.accelerator.no_sync(model=model)
        return kept

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of the groups' losses over the number of groups in the whole step."""
        logits = part_logits(model, inputs, self.scorer.device)
        labels, sizes, weight = inputs["labels"], inputs["sizes"], inputs.get("weight", 1.0)
        groups = len(sizes) if num_items_in_batch is None else num_items_in_batch
        teacher = inputs["teacher"]
        found = self.loss(logits, labels, sizes, teacher) * weight
        if weight:
            self.train_pairs += len(logits)
            chance = self.loss(torch.zeros_like(logits), labels, sizes, teacher)
            lowest = self.loss.lowest(labels, sizes)
            self._watch(logits.detach(), sizes, found.detach(), chance, lowest)
        # The processes' gradients are averaged; the loss is a sum over all their groups.
        loss = found * self.args.world_size / groups
        return (loss, {"logits": logits}) if return_outputs else loss

    def _watch(
        self, logits: Tensor, sizes: Sequence[int], loss: Tensor, chance: Tensor, lowest: Tensor
    ) -> None:
        """Add a part to what the guard is told of the step."""
        spread = sum(part.std(correction=0) for part in logits.split(list(sizes)))
        self._sums += torch.stack([loss, chance, torch.as_tensor(spread), lowest]).cpu()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        # Every process has to stop at the same step.
        sums = torch.stack(gathered(self._sums)).sum(0) / self._step_groups
        self._sums = torch.zeros(4)
        self.guard.latest = StepRecord(*sums.tolist())
        self.guard.gradient_norm = None if norm is None else float(norm)
        return norm

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Rank the evaluation groups with the scorer; `eval_loss`, `eval_ndcg@10` …."""
        self._latest = self.rank(self.eval_groups if eval_dataset is None else eval_dataset)
        found = {"loss": self._latest.loss, **self._latest.means}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        with self.stopwatch.paused():
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
        return metrics

    def rank(self, groups: GroupDataset) -> Evaluation:
        """Rank groups with the model as it is, each process its share of them.

        At the precision that the model trains in, and serves in by default.
        """
        number, processes = self.args.process_index, self.args.world_size
        if self.is_sharded and not self._is_whole_again:
            # All processes hold parts of the weights: they go through all groups together.
            self.scorer.model, number, processes = self.model_wrapped, 0, 1
            self.scorer.without_gradients, self.scorer.adapts_budget = torch.no_grad, False
        own = groups.select(list(range(number, len(groups), processes)))
        with self.stopwatch.paused(), self.compute_loss_context_manager():
            found = evaluate_groups(self.scorer, own, self.loss) if len(own) else None
            if processes == 1 and found:
                # Sums on a GPU differ in their last bits: what processes decide by is the first's.
                return gathered(found)[0]
            return interleaved(gathered(found))

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def load_weights(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        """Take the weights of a model that this run has saved; for ranking, not to train on."""
        if not self.is_sharded:
            self._load_from_checkpoint(str(folder))
            return
        model = load_model(folder, trust_remote_code=trust_remote_code).model
        nn.Module.to(model, self.args.device)
        budget = self.scorer.token_budget
        self.scorer = Scorer(model, self.scorer.encoder, token_budget=budget)
        self._is_whole_again = True

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as a whole one, also where each process holds a part of it."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        # Importing it takes a second.
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        self._save(output_dir, get_model_state_dict(self.model, options=options))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, step = Path(str(self.args.output_dir)), self.state.global_step
        carried = {
            "train_pairs": gathered(self.train_pairs),
            "carried": {name: item.as_record() for name, item in self.carried.items()},
        }
        if self.is_sharded:
            # Sharded states have formats of their own; the record makes the checkpoint a whole one.
            super()._save_checkpoint(model, trial)
            wait()
            if self.is_world_process_zero():
                write_record(folder / f"checkpoint-{step}", carried)
                remove_others(folder / f"checkpoint-{step}")
            return
        with self.stopwatch.paused():
            states = gathered(random_states())
            if not self.is_world_process_zero():
                return
            record = {
                **carried,
                "random": states,
                "scheduler": self.lr_scheduler.state_dict(),  # type: ignore[union-attr]
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            }

            def write(staged: Path) -> None:
                self._save(str(staged))
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
                assert self.optimizer is not None
                optimizer = write_optimizer(staged, self.optimizer.state_dict())
                write_record(staged, {**record, "optimizer": optimizer})

            with saving(folder / f"checkpoint-{step}.new", again=RESUMES):
                write_checkpoint(folder, step, write)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        record = read_record(Path(checkpoint))
        self.train_pairs = record["train_pairs"][self.args.process_index]
        for name, item in self.carried.items():
            item.restore(record["carried"][name])
        if self.is_sharded:
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        self.optimizer.load_state_dict(read_optimizer(Path(checkpoint), record["optimizer"]))
        self.lr_scheduler.load_state_dict(record["scheduler"])
        if record["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(record["scaler"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Has come with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_sharded:
            super()._load_rng_state(checkpoint)
            return
        restore_random_states(read_record(Path(checkpoint))["random"][self.args.process_index])

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        with quiet_transformers():
            super()._save(output_dir, state_dict)
        # A pickle, of which nothing is ever read.
        folder = Path(output_dir or str(self.args.output_dir))
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)


def check_checkpointing(model: nn.Module, args: TrainingArguments) -> None:
    """Check that a family can compute activations once more, where that is asked for.

    Raises:
        OptionError: it cannot.
    """
    # transformers has called it `activation_checkpointing` too since 5.12.
    asked = args.gradient_checkpointing or getattr(args, "activation_checkpointing", False)
    if asked and not getattr(model, "supports_gradient_checkpointing", False):
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        problem = f"{kind} models have none in transformers: use a smaller --token_budget"
        raise OptionError("gradient_checkpointing", problem)
