"""Supervisions at work: one forward pass.

Notation: B rows, T tokens per row, D decoder width, L decoder layers, N images, Q image tokens, M places whose hidden
states are read, C teacher image size, S hidden states of the teacher, P its patches, K its width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.losses import FrozenTeacher, Term
from lit_eve.models.supervision.base import ImageBatch, Supervision
from lit_eve.models.taps import hidden_state_taps


class Supervisor:
    """Reads what supervisions need while the decoder runs, and computes their losses behind it.

    One whose weight is 0 is not run, and if no other looks at the teacher, that is not run either.

    Args:
        supervisions: by the names of their heads.
        weights: of their losses, now.
        teacher: the frozen teacher, if there is one.
        images: of the batch.
        teacher_pixel_values: (N, 3, C, C) uint8, where a supervision looks at the teacher.
        teacher_features: (N, S, P, K) instead: all S hidden states that are looked at, in their order.

    Raises:
        LitEveError: a supervision looks at the teacher, and the batch has no pixels for it.
    """

    def __init__(
        self,
        supervisions: Mapping[str, Supervision],
        weights: Mapping[str, float],
        teacher: FrozenTeacher | None,
        images: ImageBatch,
        teacher_pixel_values: Tensor | None,
        teacher_features: Tensor | None = None,
    ) -> None:
        self.supervisions = {part: one for part, one in supervisions.items() if weights[part]}
        self.idle = [one.head for part, one in supervisions.items() if part not in self.supervisions]
        self.weights, self.images = weights, images
        self.teacher, self.pixels, self.features = teacher, teacher_pixel_values, teacher_features
        self._all_states = sorted({state for one in supervisions.values() for state in one.teacher_states})
        if self.pixels is None and any(self._looks_at_pixels(one) for one in self.supervisions.values()):
            raise LitEveError("a teacher is attached, but the batch has no teacher_pixel_values")
        # Supervisions that read the same places share what is read there.
        self._positions = {part: one.positions(images) for part, one in self.supervisions.items()}
        self._states: dict[int, dict[int, Tensor]] = {}
        self._num_layers = 0

    def _looks_at_pixels(self, one: Supervision) -> bool:
        return one.reads_teacher_pixels or bool(one.teacher_states and self.features is None)

    def change_tokens(self, tokens: Tensor) -> Tensor:
        """What the decoder reads in the place of the image tokens: (Q, D) -> (Q, D)."""
        for one in self.supervisions.values():
            shape, tokens = tokens.shape, one.change_tokens(self.images, tokens)
            if tokens.shape != shape:
                raise ConfigError(
                    f"supervision {type(one).__name__} changed image tokens of the shape {tuple(shape)} into "
                    f"{tuple(tokens.shape)}; the shape must stay"
                )
        return tokens

    def _read(self, tap: int, hidden: Tensor) -> dict[int, Tensor]:
        """Hidden state ``tap`` (B, T, D) at all places where it is needed, by the identity of these: (M, D) each."""
        states, flat = {}, hidden.flatten(0, 1)
        for part, one in self.supervisions.items():
            positions = self._positions[part]
            if tap in one.taps and id(positions) not in states:
                chosen = flat.index_select(0, positions.flatten()).unflatten(0, positions.shape)  # (M, D) or (M, k, D)
                states[id(positions)] = chosen.mean(1) if positions.ndim == 2 else chosen
        return states

    @contextmanager
    def watch(self, layers: Sequence[nn.Module], as_rows: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Read the inner hidden states of ``layers`` while they run; ``as_rows`` brings each into the shape (B, T, D)."""
        taps = sorted({tap for one in self.supervisions.values() for tap in one.taps})
        with hidden_state_taps(layers, taps, lambda tap, hidden: self._read(tap, as_rows(hidden))) as states:
            yield
        self._states, self._num_layers = states, len(layers)

    def terms(self, inputs_embeds: Tensor, hidden: Tensor) -> dict[str, Term]:
        """The losses, by their names.

        Args:
            inputs_embeds: (B, T, D) hidden state 0.
            hidden: (B, T, D) hidden state L, behind the final norm.
        """
        last = self._num_layers
        ends = {0: self._read(0, inputs_embeds), last: self._read(last, hidden)}
        states, teacher = self._states | ends, self._teacher_states()
        terms = {}
        for part, one in self.supervisions.items():
            features = [states[tap][id(self._positions[part])] for tap in one.taps]
            total = one.loss(self.images, features, [teacher[state] for state in one.teacher_states])
            if total.ndim:
                raise ConfigError(f"supervision {type(one).__name__} must return a sum (0-dim), not {tuple(total.shape)}")
            terms[one.term] = Term(total, one.per, self.weights[part])
        return terms

    def nothing(self) -> Tensor | float:
        """A 0 for the loss, in which the weights of heads that are not run have a part: DDP waits for all gradients."""
        return sum(weight.flatten()[:0].sum() for head in self.idle for weight in head.parameters() if weight.requires_grad)

    def _teacher_states(self) -> dict[int, Tensor]:
        needed = {state for one in self.supervisions.values() for state in one.teacher_states}
        if not needed:
            return {}
        if self.features is not None:
            return dict(zip(self._all_states, self.features.unbind(1), strict=True))
        return self.teacher.states_of(self.pixels, needed)
