"""Strategies for H q = g, where H is known through its products with vectors."""

from workers.learn.linear.base import AbstractLinearSolver, LinearSolution, MatVec, Outcome
from workers.learn.linear.cg import CG
from workers.learn.linear.direct import Direct
from workers.learn.linear.identity import Identity
from workers.learn.linear.minres import MINRES
from workers.learn.linear.neumann import Neumann
from workers.learn.linear.nystrom import Nystrom

__all__ = [
    "CG",
    "MINRES",
    "AbstractLinearSolver",
    "Direct",
    "Identity",
    "LinearSolution",
    "MatVec",
    "Neumann",
    "Nystrom",
    "Outcome",
]
