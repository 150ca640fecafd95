"""Reads trained models of other packages.

`docs/deployment.md` describes what comes of them, and what is lost.
"""

from hwtrain.checkpoint.importers._aihwkit import read_aihwkit as read_aihwkit
from hwtrain.checkpoint.importers._lightning import read_lightning as read_lightning
from hwtrain.checkpoint.importers._modules import Trained as Trained
from hwtrain.checkpoint.importers._parameters import Imported as Imported
from hwtrain.checkpoint.importers._parameters import Target as Target
from hwtrain.checkpoint.importers._parameters import parameters as parameters
from hwtrain.checkpoint.importers._rockpool import Network as Network
from hwtrain.checkpoint.importers._rockpool import read_rockpool as read_rockpool
