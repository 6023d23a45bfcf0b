"""The small language of the scenarios: one command a line, in words (README.md lists them)."""

import re
from collections.abc import Callable

from consensus.members import Members
from consensus.status import Phase, ReplicaStatus
from tests.scenarios.lies import Traitor
from tests.scenarios.stage import KINDS, LETTERS, Player, Rule, Settings, Stage
from tests.simulation.checks import Violation
from tests.simulation.disk import Disk

UNITS_MS = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000}
REQUEST_EVERY_MS = 200
SETTLE_MS = 100
RUN_MAX_MS = 120_000
LIVE_HEIGHTS = 3
WAITS = {
    Phase.IDLE: "nothing to do",
    Phase.BUILD: "builds a block",
    Phase.PROPOSAL: "waits for the proposal",
    Phase.CHECK: "executes the proposal",
    Phase.PREPARE: "waits for prepares",
    Phase.COMMIT: "waits for commits",
    Phase.APPLY: "applies the block",
    Phase.VIEW_CHANGE: "waits for the view change",
    Phase.CATCH_UP: "fetches blocks",
}


class ScriptError(Exception):
    """The script says something that means nothing."""


class Director:
    """Carries out commands on a stage; `alive` says that the last of them proved the network to be alive."""

    def __init__(self) -> None:
        """There is no network yet."""
        self.alive = False
        self._stage: Stage | None = None
        self._requests = 0
        self._traitors: dict[str, Traitor] = {}
        self._saved: dict[tuple[str, str], Disk] = {}
        self._clients: list[str] | None = None
        self._clients_life = 0
        self._verbs: dict[str, Callable[[list[str]], None]] = {
            "network": self._network,
            "start": lambda words: self._each(words, lambda player: player.start()),
            "stop": lambda words: self._each(words, lambda player: player.crash()),
            "crash": self._crash,
            "pause": lambda words: self._each(words, lambda player: setattr(player, "paused", True)),
            "resume": lambda words: self._each(words, lambda player: player.pause_ends()),
            "hang": lambda words: self._each(words, lambda player: setattr(player, "hangs", True)),
            "wipe": lambda words: self._each(words, lambda player: player.wipe(None)),
            "save": self._save,
            "restore": self._restore,
            "rollback": self._rollback,
            "copy": self._copy,
            "slow": self._slow,
            "disk": self._disk,
            "clock": self._clock,
            "work": self._work,
            "clients": self._set_clients,
            "cut": self._cut,
            "heal": self._heal,
            "drop": lambda words: self._rule(words, hold=False),
            "hold": lambda words: self._rule(words, hold=True),
            "pass": lambda _: self.stage.links.let_pass(),
            "remove": self._remove,
            "traitor": lambda words: self._each(words, self._betray),
            "lie": self._lie,
            "watch": lambda _: setattr(self.stage.story, "votes", True),
            "run": self._run,
            "status": self._status,
            "live": self._live,
            "halted": self._halted,
        }

    @property
    def stage(self) -> Stage:
        """The stage; ScriptError before `network`."""
        if self._stage is None:
            raise ScriptError("the first command is: network N")
        return self._stage

    def do(self, line: str) -> list[str]:
        """Carry out one command; return what was to be seen. A broken rule is a line that begins with BROKEN."""
        words = line.split()
        verb = self._verbs.get(words[0])
        if verb is None:
            raise ScriptError(f"unknown command: {line}")
        self.alive = False
        self._extra: list[str] = []
        try:
            verb(words[1:])
            self.stage.agree()
        except Violation as violation:
            self._extra.append(self.stage.readable(f"BROKEN {violation}"))
        except (KeyError, ValueError, IndexError) as error:
            raise ScriptError(f"{line}: {error!r}") from error
        return [*self.stage.story.end(), *self._extra]

    # --- words --------------------------------------------------------------------------------------------

    def _players(self, words: list[str]) -> list[Player]:
        if words == ["all"]:
            return [machine for machine in self.stage.machines if isinstance(machine, Player)]
        return [self.stage.machine(word) for word in words]

    def _names(self, words: list[str]) -> tuple[str, ...]:
        return tuple(player.name for player in self._players(words))

    def _each(self, words: list[str], act: Callable[[Player], object]) -> None:
        for player in self._players(words):
            act(player)

    def _milliseconds(self, words: list[str]) -> int:
        number, unit = words
        return round(float(number) * UNITS_MS[unit])

    # --- the network and its processes ----------------------------------------------------------------------

    def _network(self, words: list[str]) -> None:
        """network N [timeout|cap|status|empty TIME UNIT]… [rotation HEIGHTS] [stopped]"""
        settings = Settings(int(words.pop(0)))
        stopped = words[-1:] == ["stopped"]
        for name in ("timeout", "cap", "status", "empty"):
            if name in words:
                place = words.index(name)
                settings = settings._replace(**{f"{name}_ms": self._milliseconds(words[place + 1 : place + 3])})
        if "rotation" in words:
            settings = settings._replace(rotation_heights=int(words[words.index("rotation") + 1]))
        self._stage = Stage(settings)
        if not stopped:
            self._each(["all"], lambda player: player.start())
            self._stage.run(for_ms=SETTLE_MS)

    def _crash(self, words: list[str]) -> None:
        """crash NAME… before|after MOMENT: the process dies at its next effect of this kind."""
        place = next(index for index, word in enumerate(words) if word in ("before", "after"))
        before, moment = words[place] == "before", words[place + 1]

        def plan(player: Player) -> None:
            player.crash_at = (moment, before, player.crash)

        self._each(words[:place], plan)

    def _save(self, words: list[str]) -> None:
        """save NAME as LABEL"""
        self._saved[words[0], words[2]] = self.stage.machine(words[0]).disk.copy()

    def _restore(self, words: list[str]) -> None:
        """restore NAME from LABEL: as the operator's command does it, without the own votes"""
        self.stage.machine(words[0]).wipe(self._saved[words[0], words[2]].copy())

    def _rollback(self, words: list[str]) -> None:
        """rollback NAME to LABEL: an image of the machine is put back, and nothing on it tells"""
        player = self.stage.machine(words[0])
        player.disk = self._saved[words[0], words[2]].copy()

    def _copy(self, words: list[str]) -> None:
        """copy NAME: the directory is copied to another machine, and started there too"""
        self.stage.copy_of(words[0]).start()

    def _slow(self, words: list[str]) -> None:
        """slow NAME… TIME UNIT: building and checking a block takes this long"""
        milliseconds = self._milliseconds(words[-2:])
        self._each(words[:-2], lambda player: setattr(player, "slow", max(1, milliseconds)))

    def _disk(self, words: list[str]) -> None:
        """disk NAME… TIME UNIT: every write takes this long"""
        milliseconds = self._milliseconds(words[-2:])
        self._each(words[:-2], lambda player: setattr(player, "write_ms", milliseconds))

    def _clock(self, words: list[str]) -> None:
        """clock NAME… ahead|behind TIME UNIT"""
        sign = {"ahead": 1, "behind": -1}[words[-3]]
        milliseconds = self._milliseconds(words[-2:])
        self._each(words[:-3], lambda player: setattr(player.clock, "skew_ms", sign * milliseconds))

    def _remove(self, words: list[str]) -> None:
        """remove NAME at HEIGHT: the block of HEIGHT takes the last member off the list"""
        *rest, last = self.stage.members
        if LETTERS[len(rest)] != words[0] or self.stage.members.index(last.id) is None:
            raise ScriptError("only the last member of the list can be removed here")
        self.stage.lists[int(words[2])] = Members(tuple(rest))

    # --- work -------------------------------------------------------------------------------------------------

    def _work(self, words: list[str]) -> None:
        """work NAME…|all: a client's request reached these members"""
        self._requests += 1
        request = self._requests
        self._each(words, lambda player: player.learn(request))
        self.stage.run(for_ms=0)

    def _set_clients(self, words: list[str]) -> None:
        """clients NAME…|all|none: a request every 200 ms for whoever of these runs"""
        self._clients = None if words == ["none"] else words
        self._clients_life += 1
        self._feed(self._clients_life)

    def _feed(self, life: int) -> None:
        if self._clients is None or life != self._clients_life:
            return
        self._requests += 1
        for player in self._players(self._clients):
            if player.up and not player.paused:
                player.learn(self._requests)
        self.stage.after(REQUEST_EVERY_MS * 1000, None, self._feed, life)

    # --- the links --------------------------------------------------------------------------------------------

    def _cut(self, words: list[str]) -> None:
        """cut NAMES | NAMES: nothing passes between the two sides; cut NAMES > NAMES: nothing that way"""
        mark = "|" if "|" in words else ">"
        place = words.index(mark)
        for one in self._players(words[:place]):
            for other in self._players(words[place + 1 :]):
                self.stage.links.cut(one, other)
                if mark == "|":
                    self.stage.links.cut(other, one)

    def _heal(self, words: list[str]) -> None:
        """heal | heal NAMES | NAMES: the links (between the two sides) are up again, and both ends know it"""
        links = self.stage.links
        place = words.index("|") if words else 0
        sides = (self._names(words[:place] or ["all"]), self._names(words[place + 1 :] or ["all"]))
        pairs = [
            (one, other)
            for one, other in sorted(links.cuts)
            if (one in sides[0] and other in sides[1]) or (one in sides[1] and other in sides[0])
        ]
        for pair in pairs:
            del links.cuts[pair]
        for one, other in pairs:
            sender, receiver = self.stage.machine(one), self.stage.machine(other)
            if sender.up and receiver.up and (one < other or (other, one) not in pairs):
                sender.connected(receiver)
                receiver.connected(sender)

    def _rule(self, words: list[str], *, hold: bool) -> None:
        """drop|hold KIND… [from NAMES] [to NAMES]; KIND one of stage.KINDS, or everything"""
        everybody = self._names(["all"])
        receivers, words = _split(words, "to")
        senders, words = _split(words, "from")
        for word in words:
            kind = None if word == "everything" else KINDS[word]
            rule = Rule(hold, kind, self._names(senders) or everybody, self._names(receivers) or everybody)
            self.stage.links.rules.append(rule)

    # --- lies -------------------------------------------------------------------------------------------------

    def _betray(self, player: Player) -> None:
        self._traitors[player.name] = Traitor(self.stage, player)

    def _lie(self, words: list[str]) -> None:
        """lie NAME WHAT… to NAMES: see README.md"""
        receivers, words = _split(words, "to")
        name, what, *rest = words
        traitor = self._traitors[name]
        if what == "view-change":
            view = 2**63 - 2 if rest[0] == "huge" else int(rest[0])
            message = traitor.view_change(view, forged="forged" in rest)
            traitor.say(message, self._players(receivers))
        elif what == "status":
            traitor.say(traitor.status(int(rest[0]), int(rest[1])), self._players(receivers))
        elif what == "decided":
            traitor.say(traitor.decided(int(rest[0])), self._players(receivers))
        else:
            raise ScriptError(f"no such lie: {what}")
        self.stage.run(for_ms=5)

    # --- time and what is to be seen ----------------------------------------------------------------------------

    def _run(self, words: list[str]) -> None:
        """run TIME UNIT | run until CONDITION: virtual time passes"""
        if words[0] != "until":
            self.stage.run(for_ms=self._milliseconds(words))
            return
        condition = self._condition(words[1:])
        if not self.stage.run(for_ms=RUN_MAX_MS, until=condition):
            self._extra.append("this never happened")

    def _condition(self, words: list[str]) -> Callable[[], bool]:
        """height N [at NAMES], or NAMES and one of: stopped, prepared, vote, in view N, ask for view N"""
        if words[0] == "height":
            height = int(words[1])
            names, _ = _split(words, "at")
            return lambda: all(player.disk.height >= height for player in self._named(names))
        verb = next(index for index, word in enumerate(words) if word not in self._names(["all"]) and word != "all")
        names, rest = words[:verb], " ".join(words[verb:])
        if rest == "stopped":
            return lambda: not any(player.up for player in self._players(names))
        if rest == "prepared":
            return self._judged(names, lambda status: status.prepared_view is not None)
        if rest == "vote":
            return self._judged(names, lambda status: not status.abstaining)
        if match := re.fullmatch(r"in view (\d+)", rest):
            view = int(match[1])
            return self._judged(names, lambda status: status.view >= view)
        if match := re.fullmatch(r"asks? for view (\d+)", rest):
            view = int(match[1])
            return self._judged(names, lambda status: (status.asked or 0) >= view)
        raise ScriptError(f"unknown condition: {' '.join(words)}")

    def _judged(self, names: list[str], holds: Callable[[ReplicaStatus], bool]) -> Callable[[], bool]:
        """The condition that `holds` of everybody named."""
        return lambda: all(holds(player.status()) for player in self._named(names))

    def _named(self, names: list[str]) -> list[Player]:
        return self._players(names) if names and names != ["all"] else self.stage.honest()

    def _status(self, words: list[str]) -> None:
        """status NAME…|all: where each of them stands, and what it waits for"""
        for player in self._players(words or ["all"]):
            if player.up:
                self._extra.append(f"{player.name}: {self._standing(player.status())}")
            else:
                self._extra.append(f"{player.name}: stopped")

    def _standing(self, status: ReplicaStatus) -> str:
        parts = [f"height {status.height}, view {status.view}, {WAITS[status.phase]}"]
        if status.missing:
            parts.append("of " + " ".join(self.stage.letter(member) for member in status.missing))
        text = " ".join(parts)
        if status.asked is not None and status.asked > status.view:
            text += f"; asks for view {status.asked}"
        if status.abstaining:
            text += f"; abstains: {status.abstaining}"
        return self.stage.readable(text)

    def _live(self, words: list[str]) -> None:
        """live within TIME UNIT: everybody decides three more heights and votes, while clients send work"""
        stage = self.stage
        stage.story.votes = False
        before = max(machine.disk.height for machine in stage.machines)
        began_us = stage.now_us
        first_us: list[int] = []
        self._set_clients(["all"])

        def alive() -> bool:
            heights = [player.disk.height for player in stage.honest()]
            if not first_us and max(heights) > before:
                first_us.append(stage.now_us)
            voting = all(not player.status().abstaining for player in stage.honest() if self._has_vote(player))
            return min(heights) >= before + LIVE_HEIGHTS and voting

        if stage.run(for_ms=self._milliseconds(words[1:]), until=alive):
            seconds = -(-(first_us[0] - began_us) // 1_000_000)
            self._extra.append(f"alive: the next block came within {seconds} s")
            self.alive = True
        else:
            self._status(["all"])
            self._extra.insert(0, "NOT ALIVE")

    def _has_vote(self, player: Player) -> bool:
        return player.status().member in [validator.id for validator in self._list_now()]

    def _list_now(self) -> Members:
        lists = self.stage.lists
        return lists[max(lists)] if lists else self.stage.members

    def _halted(self, words: list[str]) -> None:
        """halted for TIME UNIT: nobody decides anything, which is right, and everybody says why"""
        before = max(machine.disk.height for machine in self.stage.machines)
        self._set_clients(["all"])
        self.stage.run(for_ms=self._milliseconds(words[1:]))
        moved = max(machine.disk.height for machine in self.stage.machines) > before
        self._status(["all"])
        self._extra.append("NOT HALTED" if moved else "halted, and nothing was decided")


def _split(words: list[str], mark: str) -> tuple[list[str], list[str]]:
    """(what follows `mark`, what stands before it); without the mark nothing follows."""
    if mark not in words:
        return [], words
    place = words.index(mark)
    return words[place + 1 :], words[:place]
