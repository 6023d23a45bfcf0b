"""What halted other networks for ever when they changed their members, staged with whole nodes: here nothing halts.

Each test names the report that it stages. In all of them the members do what the people in the report did, and then
what they could not do any more: decide a block, and decide on a member.
"""

import pytest

from tests.simulation.nodes.test_governing import Assembly, standing, status, validators
from tests.simulation.nodes.test_scenes import SHAPE, everybody_votes, final_at, scene
from tests.simulation.nodes.timeline import START_MS

pytestmark = pytest.mark.slow


def test_fisco_bcos_3876_a_degraded_network_neither_halts_nor_loses_its_say() -> None:
    """Removing a live member while others were down halted the network, and no governance was possible any more."""
    world = scene(shape=SHAPE._replace(n=6))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        live, dead = world.hosts[:4], world.hosts[4:]
        for host in dead:
            host.crash(power=True)
        names = [host.id for host in live]
        fatal = assembly.decide("remove_member", names[3], names[0], names[1:])
        assembly.goes_on(*live)
        # Of the five that would be left four decide, and three run: it waits, and blocks go on.
        assert [status(host, fatal) for host in live] == ["waiting"] * 4
        # The say is not lost: who is down is removed, and then four of five run.
        assembly.effective(assembly.decide("remove_member", dead[0].id, names[0], names[1:]), *live)
        assembly.goes_on(*live)
        # Now even the first change does no harm: of the four that are left three decide, and three run.
        assembly.effective(fatal, *live)
        assert validators(live[0]) == [*names[:3], dead[1].id]
        assembly.goes_on(*live[:3])


def test_quorum_1728_the_chain_goes_on_when_a_validator_is_removed_and_another_falls() -> None:
    """A validator was removed and the chain stopped producing blocks."""
    world = scene(shape=SHAPE._replace(n=5, rotation_heights=1))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        leaving, others = world.hosts[4], world.hosts[:4]
        names = [host.id for host in others]
        number = assembly.decide("remove_member", leaving.id, names[0], names[1:])
        # Whoever falls around the boundary, one of four may.
        others[0].crash(power=True)
        assembly.effective(number, *others[1:])
        assembly.goes_on(*others[1:])
        others[0].start()
        until(lambda: others[0].door is not None and others[0].door.service.status().ready, 60_000)
        # Three would tolerate nobody's fall, and this network's definition allows four at the least.
        expires_at_ms = START_MS + world.timeline.now_us // 1000 + 60_000
        change = {"kind": "remove_member", "member": names[3], "expires_at_ms": expires_at_ms}
        refused = assembly.say(names[0], "propose", change)
        until(final_at(*others, transactions=[refused]), 30_000)
        assert status(others[0], number + 1) == ""
        assert validators(others[0]) == names


def test_besu_8425_and_poa_245_a_member_without_vote_gets_one_back_when_its_node_runs() -> None:
    """A vote for a validator whose node did not run halted all; removed, restarted, added again: a crash."""
    world = scene(shape=SHAPE._replace(n=5))
    with world.staged() as until:
        assembly = Assembly(world, until)
        until(everybody_votes(world), 20_000)
        guest, others = world.hosts[1], [world.hosts[0], *world.hosts[2:]]
        names = [host.id for host in others]
        number = assembly.decide("change_role", guest.id, names[0], names[1:], role="observer")
        assembly.effective(number, *world.hosts)
        assert validators(others[0]) == names
        guest.crash(power=True)
        guest.start()
        until(lambda: guest.door is not None and standing(guest) == "active", 60_000)
        assembly.goes_on(*world.hosts)
        guest.crash(power=True)
        number = assembly.decide("change_role", guest.id, names[0], names[1:], role="validator")
        assembly.goes_on(*others)
        assembly.goes_on(*others)
        assert [status(host, number) for host in others] == ["waiting"] * 4
        guest.start()
        assembly.effective(number, *world.hosts)
        guest.crash(power=True)
        guest.start()
        until(everybody_votes(world), 60_000)
        # Four of five decide: with one down, the vote of who came back is needed.
        others[0].crash(power=True)
        assembly.goes_on(guest, *others[1:])
        assert guest.id in validators(guest)
