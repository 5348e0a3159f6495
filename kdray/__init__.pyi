# What a sweep script imports: the one list of public names, read by type checkers and by __init__.py.

from .choice import Choose
from .cli import main
from .confirmation import Confirm
from .data import Data
from .generated import FreshTransformer, GeneratedReviews
from .losses.distillation import Distillation
from .measuring import Latency
from .search.searcher import Search, at_least, at_most
from .search.stopping import Halving
from .slots import SlotSettings
from .students.transformer import TransformerStudent
from .sweep import Sweep
from .tasks.text_classification import TextClassification
from .teacher import Teacher
from .tracking import Tracking
from .training import Training
from .transfer import Transfer

__all__ = [
    "Choose",
    "Confirm",
    "Data",
    "Distillation",
    "FreshTransformer",
    "GeneratedReviews",
    "Halving",
    "Latency",
    "Search",
    "SlotSettings",
    "Sweep",
    "Teacher",
    "TextClassification",
    "Tracking",
    "Training",
    "Transfer",
    "TransformerStudent",
    "at_least",
    "at_most",
    "main",
]
