"""From arrays and given weights to the problem of a network that starts from them."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from workers.learn.models.groups import Groups
from workers.learn.models.network import Network
from workers.learn.models.transfer import transferred
from workers.learn.problems.linear_data import Examples, L2Term
from workers.learn.problems.network import NetworkProblem
from workers.learn.problems.network_data import network_problem
from workers.learn.regularizers.l2 import L2


def transfer_problem(
    make: Callable[[int, int], Network],
    *,
    given: Mapping[str, Tensor],
    fresh_layers: int,
    drawn: bool,
    backbone: L2Term | None,
    head: L2Term | None,
    train: Examples,
    valid: Examples | None,
    test: Examples | None,
    loss: str,
    batch_size: int,
    dtype: torch.dtype,
    device: torch.device | str,
    classes: int | None = None,
) -> NetworkProblem:
    """Build the problem of a network whose backbone starts from given weights, with penalties for it and its head.

    Args:
        make: returns a network for so many features and outputs.
        given: parameters of the backbone by name; see `transferred`.
        fresh_layers: how many of the last layers are the head.
        drawn: whether the backbone's penalty is L2-SP, around the given weights, or L2, around zero.
        backbone: the penalty of the backbone; None for none.
        head: the penalty of the head, around zero; None for none.
        train: rows to train on.
        valid: rows of the outer loss, if any.
        test: rows for reporting.
        loss: "cross_entropy" or "squared".
        batch_size: rows of a training step.
        dtype: of everything.
        device: where everything lies.
        classes: number of classes, if not all of them occur among the rows.

    Raises:
        LearnError: parts, weights or settings that do not fit each other.
    """
    problem = network_problem(
        make,
        train=train,
        valid=valid,
        test=test,
        loss=loss,
        terms=[term for term in (backbone, head) if term is not None],
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        classes=classes,
    )
    return from_weights(problem, given, fresh_layers=fresh_layers, drawn=drawn, backbone=backbone, head=head)


def from_weights(
    problem: NetworkProblem,
    given: Mapping[str, Tensor],
    *,
    fresh_layers: int,
    drawn: bool,
    backbone: L2Term | None,
    head: L2Term | None,
) -> NetworkProblem:
    """Return a problem whose backbone starts from given weights, with these penalties in place of its own.

    Args:
        problem: of the same network from scratch.
        given: see `transfer_problem`, as of all others.
        fresh_layers: how many of the last layers are the head.
        drawn: whether the backbone's penalty is L2-SP.
        backbone: the penalty of the backbone.
        head: the penalty of the head.

    Raises:
        LearnError: weights that are not those of the backbone.
    """
    like = problem.train.x
    start = transferred(problem.network, given, head=fresh_layers, drawn=drawn, like=like)
    penalties = []
    if backbone is not None:
        penalties.append(_l2(backbone, start.backbone(backbone.per, biases=backbone.biases), like))
    if head is not None:
        penalties.append(_l2(head, start.head(head.per, biases=head.biases), like))
    return replace(problem, network=start.network, regularizers=tuple(penalties))


def _l2(term: L2Term, groups: Groups, like: Tensor) -> L2:
    return L2(term.name, groups.of.to(like.device), term.initial, groups.shape, term.fixed, term.low, term.high)
