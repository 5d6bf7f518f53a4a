"""Pruning: where a model can be cut, what matters least, the cut itself, and the fit after it."""

from .anatomy import AXES, Anatomy, anatomy_of
from .architectures import ANATOMIES
from .criteria import CRITERIA, Criterion, axis_importance, register_criterion
from .index_maps import compose
from .masks import Pattern, Zeros, mask_model, pattern_of
from .pruning import Pruned, prune_model
from .scores import Subject, token_means
from .surgery import Cut, IndexMap, cut, cut_backbone
from .vocabulary import PrunedVocabulary, TokenizationChange, prune_vocabulary, tokenization_change

__all__ = [
    "ANATOMIES",
    "AXES",
    "CRITERIA",
    "Anatomy",
    "Criterion",
    "Cut",
    "IndexMap",
    "Pattern",
    "Pruned",
    "PrunedVocabulary",
    "Subject",
    "TokenizationChange",
    "Zeros",
    "anatomy_of",
    "axis_importance",
    "compose",
    "cut",
    "cut_backbone",
    "mask_model",
    "pattern_of",
    "prune_model",
    "prune_vocabulary",
    "register_criterion",
    "token_means",
    "tokenization_change",
]
