"""Duplicate an expert whose tokens pull it in two directions that cancel.

Shapes: n tokens sent to one expert, r width of what is routed, d of what the expert is handed, g rows of its first
weight; the gradient of one token is the outer product u_g x_d, which is never made: inner products of two of them are
(u·u')(x·x').
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from moescope.config import Config, doc
from moescope.expansion.base import Detector, Finding, State, Threshold, TokenGradients, View, argbest

_BRANCH = 7
"""Branch of the layer's seed for the tokens that are drawn, and for their two halves."""


@dataclass(frozen=True, kw_only=True)
class ConflictConfig(Config):
    every: int = field(default=10, metadata=doc("steps between two looks, while the loss is on a plateau"))
    window: int = field(default=50, metadata=doc("training losses in each of the two windows that are compared"))
    fall: float = field(
        default=0.01,
        metadata=doc("plateau: the newer window's mean loss lies less than this share below the older one's"),
    )
    statistic: float = field(default=4.0, metadata=doc("T above which the two sides' gradients differ"))
    explained: float = field(
        default=0.003, metadata=doc("R above which the sides explain enough of the gradients' variance")
    )
    tokens: int = field(
        default=2048, metadata=doc("most tokens per expert that are looked at, a random sample of more")
    )
    fewest: int = field(default=16, metadata=doc("fewest tokens on each side in the half that is tested"))
    ridge: float = field(
        default=1e-3, metadata=doc("added in the whitening to each feature's second moment, as a share of their mean")
    )

    def __post_init__(self) -> None:
        for name in ("every", "window"):
            self.require(getattr(self, name) >= 1, name, "at least 1.")
        self.require(self.window <= 1 << 20, "window", f"at most {1 << 20}.")
        self.require(math.isfinite(self.fall), "fall", "it must be finite.")
        for name in ("statistic", "explained"):
            self.require(0 <= getattr(self, name) < math.inf, name, "it must not be negative.")
        self.require(self.fewest >= 2, "fewest", "a variance needs at least 2.")
        self.require(4 * self.fewest <= self.tokens <= 1 << 16, "tokens", "it must lie between 4 fewest and 65536.")
        self.require(1e-12 <= self.ridge < math.inf, "ridge", "at least 1e-12, or rounding outweighs it.")


class Conflict(Detector):
    """Where several kinds of tokens pull an expert apart, their gradients cancel: its mean gradient is near 0.

    On a plateau of the training loss, `every` steps, for each expert: on a random half of its tokens the direction of
    the router's space that best predicts their gradients (`find_direction`); on the other half, parted at that
    direction, T and R (`part`). It fires where T > `statistic` and R > `explained`. Of those that fire, those are
    preferred whose copies died least often since they last were copies themselves (a trial refused them), and of these
    the one is chosen whose sides explain most: R times the variance times the tokens that were sent.

    Plateau: of the last 2 `window` training losses, the newer half's mean is more than (1 - `fall`) times the older
    half's. Losses are counted anew after every change of the layer's experts. Between looks, signals stay as they were.
    """

    Config = ConflictConfig
    config: ConflictConfig
    rule = "on a plateau: the tokens' gradients differ between two sides of a direction, found on other tokens"
    source = "ours"
    captures = True

    def __init__(self, config: ConflictConfig, num_slots: int, seed: int = 0) -> None:
        super().__init__(config, num_slots, seed)
        self.losses = torch.full((2 * config.window,), torch.nan, dtype=torch.float64)
        self.last = {name: self._none() for name in ("conflict", "explained", "tokens")}
        self.parent_E = torch.full((num_slots,), -1)
        self.refused_E = torch.zeros(num_slots, dtype=torch.int64)

    def _none(self) -> Tensor:
        return torch.full((self.num_slots,), torch.nan, dtype=torch.float64)

    def state(self) -> State:
        own = {"losses": self.losses, "parents": self.parent_E, "refused": self.refused_E, **self.last}
        return {name: value.clone() for name, value in own.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.losses, self.parent_E = state["losses"].clone(), state["parents"].clone()
        self.refused_E = state["refused"].clone()
        self.last = {name: state[name].clone() for name in self.last}

    def grown(self, parent: int, child: int) -> None:
        self.parent_E[child], self.refused_E[child] = parent, 0
        self._begin_anew(parent, child)

    def retired(self, slot: int) -> None:
        if self.parent_E[slot] >= 0:
            self.refused_E[self.parent_E[slot]] += 1
        self.parent_E[slot] = -1
        self.parent_E[self.parent_E == slot] = -1
        self._begin_anew(slot)

    def _begin_anew(self, *slots: int) -> None:
        self.losses.fill_(torch.nan)
        for value in self.last.values():
            value[list(slots)] = torch.nan

    @property
    def loss_fall(self) -> float:
        """By how much of the older window's mean loss the newer one's is lower; NaN until both windows are full."""
        older, newer = self.losses.view(2, -1).mean(dim=1).tolist()
        return 1 - newer / older if older else 0.0

    def wants_gradients(self, step: int) -> bool:
        return step % self.config.every == 0 and self.loss_fall < self.config.fall

    def look(self, view: View) -> Finding:
        config, fall = self.config, self.loss_fall
        fired_E, gain_E = torch.zeros_like(view.alive_E), self._none()
        directions: dict[int, Tensor] = {}
        if view.gradients is not None and self.wants_gradients(view.step):
            for expert in view.alive_E.nonzero()[:, 0].tolist():
                found = self._judge(view, expert)
                self._remember(expert, found)
                if found is not None and found.statistic > config.statistic and found.explained > config.explained:
                    fired_E[expert] = True
                    gain_E[expert] = found.explained * found.variance * int(view.sent_E[expert])
                    directions[expert] = found.direction_r.float().cpu()
        self.losses = torch.cat([self.losses[1:], self.losses.new_tensor([view.loss])])
        least = self.refused_E[fired_E].min() if bool(fired_E.any()) else 0
        chosen = argbest(gain_E, fired_E & (self.refused_E <= least))
        return Finding(
            signals={
                **{name: value.clone() for name, value in self.last.items()},
                "loss_fall": torch.full_like(gain_E, fall),
                "grad_norm": view.norm_E,
            },
            thresholds={
                "conflict": Threshold(at=config.statistic, fires="above"),
                "explained": Threshold(at=config.explained, fires="above"),
                "loss_fall": Threshold(at=config.fall, fires="below"),
            },
            fired_E=fired_E,
            chosen=chosen,
            direction_d=None if chosen is None else directions[chosen],
        )

    def _judge(self, view: View, expert: int) -> Parted | None:
        """None where there are too few tokens."""
        assert view.gradients is not None
        if view.sent_E[expert] < 4 * self.config.fewest:
            return None
        sequence = np.random.SeedSequence([self.seed, _BRANCH, view.step, expert])
        draw, halve = (int(word) for word in sequence.generate_state(2))
        found = view.gradients(expert, self.config.tokens, draw)
        order_n = torch.randperm(len(found.x_nd), generator=torch.Generator().manual_seed(halve))
        first_n = torch.zeros(len(order_n), dtype=torch.bool)
        first_n[order_n[: len(order_n) // 2]] = True
        parted = conflict(found, first_n.to(found.x_nd.device), self.config.ridge)
        return None if min(parted.sides) < self.config.fewest else parted

    def _remember(self, expert: int, found: Parted | None) -> None:
        values = (torch.nan,) * 3 if found is None else (found.statistic, found.explained, float(sum(found.sides)))
        for value, number in zip(self.last.values(), values, strict=True):
            value[expert] = number


@dataclass(frozen=True)
class Parted:
    """One expert's tokens, parted.

    direction_r: float64, of such length that its product with h has mean square 1; its largest entry is positive.
    statistic:   T = |G1 - G2|² / (tr S1 / n1 + tr S2 / n2): squared distance of the sides' mean gradients over what it
                 would be by chance, so about 1 where they do not differ. 0 where a side has fewer than 2 tokens.
    explained:   R = (n1 n2 / n²) (|G1 - G2|² - tr S1 / n1 - tr S2 / n2) / tr S: the share of the gradients' variance
                 that the sides explain, less what they explain by chance; 0 on average where they do not differ.
    variance:    tr S, of the tested tokens' gradients.
    sides:       (n1, n2), tested tokens on the positive side and on the other.
    """

    direction_r: Tensor
    statistic: float
    explained: float
    variance: float
    sides: tuple[int, int]


@torch.no_grad()
def conflict(found: TokenGradients, first_n: Tensor, ridge: float = 1e-3) -> Parted:
    """The direction from the tokens of `first_n` (bool), T and R from the others. Neither depends on u's scale."""
    h_nr = (found.x_nd if found.h_nd is None else found.h_nd).double()
    x_nd, u_ng = found.x_nd.double(), found.u_ng.double()
    if not all(bool(values.isfinite().all()) for values in (h_nr, x_nd, u_ng)):  # the training loop says so in words
        return Parted(torch.zeros_like(h_nr[0]), 0.0, 0.0, 0.0, (0, 0))
    direction_r = find_direction(h_nr[first_n], x_nd[first_n], u_ng[first_n], ridge)
    rest_n = ~first_n
    return part(x_nd[rest_n], u_ng[rest_n], h_nr[rest_n] @ direction_r > 0, direction_r)


def find_direction(h_nr: Tensor, x_nd: Tensor, u_ng: Tensor, ridge: float) -> Tensor:
    """The v for which v·h, of mean square 1, has most covariance with the tokens' gradients, [r].

    With M = E[h hᵀ] (plus the ridge) and C the cross-covariance of h with the flattened gradients, v = M^-1/2 a, a the
    left singular vector of M^-1/2 C. h is not centred: a router's row has no bias, so sides part at v·h = 0.
    """
    gram_nn = (u_ng @ u_ng.T) * (x_nd @ x_nd.T)
    gram_nn = gram_nn - gram_nn.mean(0, keepdim=True)
    gram_nn = gram_nn - gram_nn.mean(1, keepdim=True)
    moment_rr = h_nr.T @ h_nr / len(h_nr)
    moment_rr += ridge * moment_rr.diagonal().mean().clamp_min(torch.finfo(moment_rr.dtype).tiny) * _eye(moment_rr)
    values_r, vectors_rr = torch.linalg.eigh(moment_rr)
    whiten_rr = (vectors_rr * values_r.rsqrt()) @ vectors_rr.T
    white_nr = h_nr @ whiten_rr
    left_r = torch.linalg.eigh(white_nr.T @ gram_nn @ white_nr).eigenvectors[:, -1]
    direction_r: Tensor = whiten_rr @ left_r
    return direction_r * direction_r[direction_r.abs().argmax()].sign()


def part(x_nd: Tensor, u_ng: Tensor, side_n: Tensor, direction_r: Tensor) -> Parted:
    """T and R of tokens that lie on two sides."""
    sides = int(side_n.sum()), int((~side_n).sum())
    square_n = u_ng.square().sum(1) * x_nd.square().sum(1)
    _, variance = _moments(x_nd, u_ng, square_n)
    if min(sides) < 2 or not variance > 0:
        return Parted(direction_r, 0.0, 0.0, variance, sides)
    (mean1_gd, variance1), (mean2_gd, variance2) = (
        _moments(x_nd[of_n], u_ng[of_n], square_n[of_n]) for of_n in (side_n, ~side_n)
    )
    distance = float((mean1_gd - mean2_gd).square().sum())
    chance = variance1 / sides[0] + variance2 / sides[1]
    share = sides[0] * sides[1] / len(side_n) ** 2
    statistic = distance / chance if chance > 0 else math.inf
    return Parted(direction_r, statistic, share * (distance - chance) / variance, variance, sides)


def _moments(x_nd: Tensor, u_ng: Tensor, square_n: Tensor) -> tuple[Tensor, float]:
    """Mean of the gradients [g, d], and the trace of their covariance (unbiased)."""
    n = len(x_nd)
    mean_gd = u_ng.T @ x_nd / n
    return mean_gd, float((square_n.sum() - n * mean_gd.square().sum()).clamp_min(0.0) / max(n - 1, 1))


def _eye(like_rr: Tensor) -> Tensor:
    return torch.eye(len(like_rr), dtype=like_rr.dtype, device=like_rr.device)
