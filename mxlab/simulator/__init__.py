"""An embedded Nexus with known truth: seeded users, members and jobs, over real HTTP.

`World` is the state machine alone, pure; `mxlab.simulator.server` serves it. It reads MX's pages by itself and
shares no code with the client but the errors and the status table.
"""

from mxlab.simulator.faults import FAULTS, Faults
from mxlab.simulator.parameters import SCENARIOS, Parameters
from mxlab.simulator.records import Records
from mxlab.simulator.world import World

__all__ = ["FAULTS", "SCENARIOS", "Faults", "Parameters", "Records", "World"]
