"""The training step, the loop and the main job that recipes share."""

from hwtrain._parts.source import resolve as resolve
from hwtrain.train._comparison import accuracy as accuracy
from hwtrain.train._comparison import compare as compare
from hwtrain.train._config import Config as Config
from hwtrain.train._config import EvaluationParameter as EvaluationParameter
from hwtrain.train._config import ExportParameter as ExportParameter
from hwtrain.train._config import TrainingParameter as TrainingParameter
from hwtrain.train._functional import Functional as Functional
from hwtrain.train._job import job_of as job_of
from hwtrain.train._loop import Split as Split
from hwtrain.train._loop import TrainState as TrainState
from hwtrain.train._loop import cross_entropy as cross_entropy
from hwtrain.train._loop import epoch_order as epoch_order
from hwtrain.train._loop import init_state as init_state
from hwtrain.train._loop import make_step as make_step
from hwtrain.train._loop import run_steps as run_steps
from hwtrain.train._mismatch_config import ChipsParameter as ChipsParameter
from hwtrain.train._mismatch_config import DeviationParameter as DeviationParameter
from hwtrain.train._mismatch_config import MismatchConfig as MismatchConfig
from hwtrain.train._preparation import prepare as prepare
from hwtrain.train._reading import read_config as read_config
from hwtrain.train._report import Accuracies as Accuracies
from hwtrain.train._robustness import contest as contest
from hwtrain.train._robustness import prepare_contest as prepare_contest
