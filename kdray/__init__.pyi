# What a sweep script imports: the one list of public names, read by type checkers and by __init__.py.

from .augmentation.settings import Augmentation
from .choice.reruns import Confirm
from .choice.rule import Choose
from .cli.running import main
from .data.splits import Data
from .data.unlabelled import Unlabelled
from .evaluation.measuring import Latency
from .losses.distillation import Distillation
from .models.fresh import FreshTransformer
from .search.settings import Search, at_least, at_most
from .search.stopping import Halving
from .slots.pool import SlotSettings
from .sources.generated.articles import GeneratedArticles
from .sources.generated.mentions import GeneratedMentions
from .sources.generated.moods import GeneratedMoods
from .sources.generated.pairs import GeneratedPairs
from .sources.generated.reviews import GeneratedReviews
from .students.convolutional import ConvolutionalStudent
from .students.recurrent import RecurrentStudent
from .students.static import StaticStudent
from .students.transformer import TransformerStudent
from .sweep import Sweep
from .tasks.causal_lm import CausalLM
from .tasks.masked_lm import MaskedLM
from .tasks.multi_label import MultiLabel
from .tasks.regression import Regression
from .tasks.text_classification import TextClassification
from .tasks.token_classification import TokenClassification
from .teacher.answer_file import AnswerFile
from .teacher.teacher import Teacher
from .teacher.transfer import Transfer
from .tracking.settings import Tracking
from .training.settings import Training

__all__ = [
    "AnswerFile",
    "Augmentation",
    "CausalLM",
    "Choose",
    "Confirm",
    "ConvolutionalStudent",
    "Data",
    "Distillation",
    "FreshTransformer",
    "GeneratedArticles",
    "GeneratedMentions",
    "GeneratedMoods",
    "GeneratedPairs",
    "GeneratedReviews",
    "Halving",
    "Latency",
    "MaskedLM",
    "MultiLabel",
    "RecurrentStudent",
    "Regression",
    "Search",
    "SlotSettings",
    "StaticStudent",
    "Sweep",
    "Teacher",
    "TextClassification",
    "TokenClassification",
    "Tracking",
    "Training",
    "Transfer",
    "TransformerStudent",
    "Unlabelled",
    "at_least",
    "at_most",
    "main",
]
