"""Train step, loop and main job that the recipes share."""

from hwtrain._parts.source import resolve as resolve
from hwtrain.training.comparison import accuracy as accuracy
from hwtrain.training.comparison import compare as compare
from hwtrain.training.config import Config as Config
from hwtrain.training.config import EvaluationParameter as EvaluationParameter
from hwtrain.training.config import ExportParameter as ExportParameter
from hwtrain.training.config import TrainingParameter as TrainingParameter
from hwtrain.training.functional import Functional as Functional
from hwtrain.training.job import job_of as job_of
from hwtrain.training.loop import Split as Split
from hwtrain.training.loop import TrainState as TrainState
from hwtrain.training.loop import cross_entropy as cross_entropy
from hwtrain.training.loop import epoch_order as epoch_order
from hwtrain.training.loop import init_state as init_state
from hwtrain.training.loop import make_step as make_step
from hwtrain.training.loop import run_steps as run_steps
from hwtrain.training.mismatch_config import ChipsParameter as ChipsParameter
from hwtrain.training.mismatch_config import DeviationParameter as DeviationParameter
from hwtrain.training.mismatch_config import MismatchConfig as MismatchConfig
from hwtrain.training.preparation import prepare as prepare
from hwtrain.training.reading import read_config as read_config
from hwtrain.training.report import Accuracies as Accuracies
from hwtrain.training.robustness import contest as contest
from hwtrain.training.robustness import prepare_contest as prepare_contest
