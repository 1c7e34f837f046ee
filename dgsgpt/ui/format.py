from dgsgpt.format import *  # noqa
from dgsgpt.format import MINUS, MISSING  # noqa
