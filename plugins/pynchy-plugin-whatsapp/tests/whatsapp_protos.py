"""neonize's protobuf classes, without the Go library that `import neonize` loads into a process for good."""

import sys
import types
from importlib.util import find_spec

if "neonize" not in sys.modules and (found := find_spec("neonize")):
    package = types.ModuleType("neonize")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["neonize"] = package

from neonize.proto import Neonize_pb2 as events
from neonize.proto.waE2E import WAWebProtobufsE2E_pb2 as e2e

#: The codes by which Go says what kind an event is of.
CODES = {
    events.Device: 0,
    events.PairStatus: 2,
    events.Connected: 3,
    events.KeepAliveTimeout: 4,
    events.KeepAliveRestored: 5,
    events.LoggedOut: 6,
    events.StreamReplaced: 7,
    events.TemporaryBan: 8,
    events.ConnectFailure: 9,
    events.ClientOutdated: 10,
    events.StreamError: 11,
    events.Disconnected: 12,
    events.Message: 17,
    events.JoinedGroup: 21,
    events.GroupInfoEvent: 22,
}

__all__ = ["CODES", "e2e", "events"]
