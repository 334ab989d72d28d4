"""The faults: each does its harm once, and returns when the place has gone through it. Those that are bytes: `hostile`.

None sleeps for an effect: each waits for the condition that it is about. What a fault is meant to hit is looked for
first - a worker *while* it computes a certain request - and that it was hit is shown by the journal.
"""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

import psutil

from faults.scene import EITHER, Asked, Scene

GUILTY: Final = frozenset((422, 500))  # what a request that kills workers, or hangs, may be told
BUSY: Final = frozenset((200, 408, 429, 503))  # what a request may be told that asks too much
DIES: Final[Mapping[str, Any]] = {"do": "leave", "code": 1}
INNOCENT: Final[Mapping[str, Any]] = {}

Fault = Callable[[Scene], None]


# --- workers ---------------------------------------------------------------------------------------------------------


def kill_idle(scene: Scene) -> None:
    """A worker dies while nobody asks for anything."""
    scene.rest()
    scene.kill(scene.one())
    scene.client.resume()


def kill_one(scene: Scene) -> None:
    """A worker dies in the middle of a batch: another computes it."""
    with _in_the_middle(scene) as victim:
        scene.kill(victim)


def kill_one_of_once(scene: Scene) -> None:
    """A worker dies in the middle of what must not be computed twice: its client is told so."""
    asked, victim = scene.busy("once", "/once", 5.0, expects=frozenset((500,)))
    scene.kill(victim)
    asked.answer()


def kill_all(scene: Scene) -> None:
    """All workers of a stage die at once."""
    scene.kill(*scene.workers())


def kill_again_and_again(scene: Scene) -> None:
    """A worker dies, and again one as soon as some requests have passed, whether the first is back or not."""
    for _ in range(4):
        scene.flow(20)
        scene.kill(scene.one())


def stop_one(scene: Scene) -> None:
    """A worker stands still in the middle of a batch: its requests are answered without it."""
    with ExitStack() as stack, _in_the_middle(scene) as victim:
        stack.enter_context(scene.stopped(victim))


def stop_idle_for_good(scene: Scene) -> None:
    """The workers of a stage stand still while idle: they are replaced though nobody asks for anything."""
    scene.rest()
    victims = scene.workers()
    with scene.stopped(*victims):
        scene.ends(*victims)
    scene.client.resume()


def hang(scene: Scene, do: str = "sleep") -> None:
    """One request hangs in ``forward``; its neighbours in the batch do not pay for it."""
    guilty, *mates = scene.together([{"do": do, "s": 1000}, *[INNOCENT] * 3], expects=[GUILTY | EITHER])
    scene.injected += 1
    if guilty.answer().status == 200:
        scene.problem("empty: it did not hang")
    for mate in mates:
        mate.answer()


def hang_in_c(scene: Scene) -> None:
    """The same with the interpreter's lock held, so that nothing inside the process can run."""
    hang(scene, "hold_gil")


def die_once(scene: Scene) -> None:
    """Requests under which a worker ends in each of many ways, once: they are computed elsewhere."""
    acts: list[dict[str, Any]] = [
        *({"do": "leave", "code": code} for code in (0, 3)),
        *({"do": "signal", "number": int(number)} for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL)),
    ]
    for act in acts:
        asked = scene.ask({"model": {**act, "once": True}})
        scene.injected += 1
        _computed_again(scene, asked)
        scene.flow(20)  # such deaths in a row are for another row


def raise_anything(scene: Scene) -> None:
    """Whatever user code raises fails that request alone, and no worker dies of it."""
    what = ("RuntimeError", "MemoryError", "KeyboardInterrupt", "GeneratorExit", "CancelledError")
    acts: list[dict[str, Any]] = [*({"do": "raise", "what": one} for one in what), {"do": "sys_exit", "code": 3}]
    with scene.nobody_dies():
        asked = [scene.ask({stage: act}, expects=GUILTY) for act in acts for stage in ("prep", "model")]
        scene.injected += len(asked)
        for one in asked:
            one.answer()


def lose_the_weights(scene: Scene) -> None:
    """A worker that died cannot start again for a while: the others serve, nothing spins, and it comes back."""
    missing = scene.place.notes / "broken-model"
    seen = scene.deployment.running.log.count("the weights of model are not there")
    missing.touch()
    try:
        scene.kill(scene.one())
        scene.wait(
            "a start that fails",
            lambda: scene.deployment.running.log.count("the weights of model are not there") > seen,
        )
        scene.flow(60)
    finally:
        missing.unlink()


def return_too_few(scene: Scene) -> None:
    """A request makes ``forward`` return one result too few: its neighbours get theirs."""
    guilty, *mates = scene.together([{"do": "short"}, *[INNOCENT] * 3], expects=[GUILTY])
    scene.injected += 1
    for one in (guilty, *mates):
        one.answer()


def starve(scene: Scene) -> None:
    """Everything gets a tenth of the time for some seconds: slow is not dead."""
    pause = threading.Event()  # never set: only its timed wait is wanted
    with scene.nobody_dies():
        # Those that watch stop first and go on last, as they would in a group that has no time left.
        processes = sorted(scene.deployment.running.processes(), key=lambda process: process.create_time())
        for _ in range(14):
            for process in processes:
                process.suspend()
            pause.wait(0.18)
            for process in reversed(processes):
                process.resume()
            pause.wait(0.02)
        scene.injected += 1


# --- requests that kill -----------------------------------------------------------------------------------------------


def poison(scene: Scene) -> None:
    """A request under which every worker dies: it alone fails."""
    with _deaths(scene, at_most=3):
        asked = scene.ask({"model": {"do": "signal", "number": int(signal.SIGSEGV)}}, expects=GUILTY)
        scene.injected += 1
        asked.answer()


def some_poison(scene: Scene) -> None:
    """Several such at once among good ones."""
    with _deaths(scene, at_most=6):
        asked = [scene.ask({"model": DIES}, expects=GUILTY) for _ in range(2)]
        scene.injected += len(asked)
        for one in asked:
            one.answer()


def the_same_poison(scene: Scene) -> None:
    """One poison that a client sends again and again: the deaths stop, and it is told not to try again."""
    same = next(scene.client.numbers)
    with _deaths(scene, at_most=4):
        for _ in range(6):
            scene.injected += 1
            answer = scene.ask({"model": DIES}, expects=GUILTY, same=same).answer()
            if answer.headers.get("x-should-retry") != "false":
                scene.problem(f"retried: {answer.status} without x-should-retry: false")
                break


def poison_together(scene: Scene) -> None:
    """Requests that are harmless alone and kill a worker when they meet in a batch: all are answered."""
    with _deaths(scene, at_most=9, stage="brief"):
        asked = scene.together([{"do": "pair"}] * 3)
        scene.injected += 1
        for one in asked:
            one.answer()


def nothing_but_poison(scene: Scene) -> None:
    """For a while every request kills: the stage says so at once instead of letting all wait, and comes back."""
    scene.rest()
    asked = [scene.ask({"model": DIES}, expects=GUILTY | frozenset((503,))) for _ in range(24)]
    scene.injected += len(asked)
    for one in asked:
        one.answer()
    scene.wait("a good answer", lambda: scene.ask(expects=frozenset((200, 503))).answer().status == 200)
    scene.client.resume()


def answer_too_much(scene: Scene) -> None:
    """Answers larger than may be given whole: they alone fail."""
    asked = [scene.ask({"model": {"do": "large", "bytes": 5 << 20}}, expects=frozenset((500,))) for _ in range(5)]
    scene.injected += len(asked)
    for one in asked:
        one.answer()


# --- the broker -------------------------------------------------------------------------------------------------------


def kill_broker(scene: Scene) -> None:
    """The broker dies, with everything that is under way through it."""
    asked, _ = scene.busy()
    scene.kill(scene.deployment.broker())
    asked.answer()


def kill_broker_and_workers(scene: Scene) -> None:
    """The broker dies, and while it is away a worker of each stage."""
    asked, victim = scene.busy()
    scene.kill(scene.deployment.broker(), scene.one("prep"), victim)
    asked.answer()


def kill_broker_as_soon_as_it_serves(scene: Scene) -> None:
    """The broker dies, and the next one dies as soon as it has answered somebody, and so on."""
    for _ in range(2):
        scene.good(3)
        scene.kill(scene.deployment.broker())


def keep_broker_dead(scene: Scene) -> None:
    """The broker dies while what would start another stands still; then that goes on."""
    with scene.stopped(psutil.Process(scene.deployment.running.pid)):
        scene.kill(scene.deployment.broker())
        asked = [scene.ask() for _ in range(20)]
        _pass(1.0)  # there is nothing to wait for: nobody can answer
    for one in asked:
        one.answer()


def stop_broker(scene: Scene) -> None:
    """The broker stands still for a while, less than requests have time, and goes on."""
    with scene.stopped(scene.deployment.broker()):
        asked = [scene.ask() for _ in range(20)]
        _pass(1.0)  # likewise
    for one in asked:
        one.answer()


def stop_broker_for_good(scene: Scene) -> None:
    """The broker stands still and does not go on: it is replaced."""
    broker = scene.deployment.broker()
    with scene.stopped(broker):
        scene.ends(broker)


# --- the frontend, and clients ----------------------------------------------------------------------------------------


def kill_frontend(scene: Scene) -> None:
    """A process of the frontend dies, with its connections; the others do not notice."""
    scene.kill(scene.rng.choice(scene.deployment.frontends()[1:]))


def kill_frontend_master(scene: Scene) -> None:
    """The process that started the frontend's dies; they do not outlive it, and are started anew."""
    scene.kill(scene.deployment.frontends()[0])


def stop_frontend_for_good(scene: Scene) -> None:
    """A process of the frontend stands still: it is replaced."""
    victim = scene.rng.choice(scene.deployment.frontends()[1:])
    with scene.stopped(victim):
        scene.ends(victim)


def try_again_elsewhere(scene: Scene) -> None:
    """All processes of the frontend die with a request that has an Idempotency-Key; its client asks again, and gets the
    answer of the same computation."""
    same = next(scene.client.numbers)
    about: dict[str, Any] = {"path": "/once", "same": same, "headers": {"idempotency-key": f"chaos-{same}"}}
    first, _ = scene.busy("once", s=0.5, **about)
    scene.kill(*scene.deployment.frontends()[1:])
    first.answer()
    scene.wait("its answer", lambda: scene.ask(first.acts, **about).answer().status == 200)
    _computed_once(scene, first)


def try_at_once(scene: Scene) -> None:
    """Several tries with one Idempotency-Key at a time are one computation; another request under it is refused."""
    same = next(scene.client.numbers)
    about: dict[str, Any] = {"path": "/once", "same": same, "headers": {"idempotency-key": f"chaos-{same}"}}
    tries = [scene.ask({"once": {"do": "sleep", "s": 0.2}}, **about) for _ in range(4)]
    scene.injected += 1
    for one in tries:
        one.answer()
    scene.ask(expects=frozenset((422,)), path="/once", headers=about["headers"]).answer()
    _computed_once(scene, tries[0])


def leave(scene: Scene) -> None:
    """Clients go away while their requests are under way."""
    asked = [
        scene.ask({"model": {"do": "sleep", "s": 0.02}}, leaves_after_s=scene.rng.choice((0.0, 0.005, 0.02)))
        for _ in range(30)
    ]
    scene.injected += sum(one.answer().status == 0 for one in asked)


def short_of_time(scene: Scene) -> None:
    """Deadlines around the time that things take, and results that come too late: each is answered once."""
    asked = [scene.ask(deadline_s=scene.rng.choice((0.005, 0.02, 0.05)), expects=BUSY) for _ in range(40)]
    late = [
        scene.ask({"brief": {"do": "sleep", "s": 0.3}}, path="/brief", deadline_s=0.1, expects=frozenset((408, 429)))
        for _ in range(2)
    ]
    scene.injected += len(asked) + len(late)
    for one in (*asked, *late):
        one.answer()


def burst(scene: Scene) -> None:
    """Many times what can be done at once, for an instant: what is refused is refused at once, the rest is served."""
    asked = [scene.ask(deadline_s=3.0, expects=BUSY) for _ in range(300)]
    scene.injected += 1
    if not any(one.answer().status == 200 for one in asked):
        scene.problem("empty: a burst of which nothing was served")


def slow_down(scene: Scene) -> None:
    """A stage takes ten times as long for a while: short deadlines are missed, and it is over when that is."""
    slow = scene.place.notes / "slow-model"
    slow.touch()
    scene.injected += 1
    try:
        for one in [scene.ask(deadline_s=0.3, expects=BUSY) for _ in range(60)]:
            one.answer()
    finally:
        slow.unlink()


def out_of_descriptors(scene: Scene) -> None:
    """A process of the frontend has no descriptor left for a while: who has a connection is served."""
    victim = scene.deployment.frontends()[-1]
    most = victim.num_fds() + 2
    with _limited(resource.RLIMIT_NOFILE, most, victim), ExitStack() as held:

        def is_spent() -> bool:
            held.enter_context(scene.connected())  # by whichever process: each takes of them
            return bool(victim.num_fds() >= most - 1)

        scene.wait("no descriptor to be left", is_spent)
        scene.injected += 1
        scene.flow(20)


def fill_the_disk(scene: Scene) -> None:
    """Nothing can be written to any file, by any process, and then a worker dies."""
    with _limited(resource.RLIMIT_FSIZE, 0, *scene.deployment.running.processes()):
        scene.flow(20)
        scene.kill(scene.one())
        scene.whole()
        scene.flow(20)


# --- changes, and ends ------------------------------------------------------------------------------------------------


def reload(scene: Scene) -> None:
    """All workers and frontend processes are replaced by a version that is the same."""
    before = {worker.pid for worker in scene.workers()}
    done = scene.deployment.running.engine("reload")
    scene.injected += 1
    if done.returncode or before & {worker.pid for worker in scene.workers()}:
        scene.problem(f"not replaced: {done.stderr[-300:]}")


def scale(scene: Scene) -> None:
    """A stage gets a worker more, and loses it again."""
    for count in (4, 3):
        done = scene.deployment.running.engine("scale", f"model={count}")
        scene.injected += 1
        if done.returncode:
            scene.problem(f"not scaled: {done.stderr[-300:]}")
        scene.wait(f"{count} workers", lambda wanted=count: len(scene.workers()) == wanted)  # type: ignore[misc]


def terminate(scene: Scene) -> None:
    """SIGTERM with requests under way: they are answered, and nothing is left."""
    scene.rest()
    asked = [scene.ask({"model": {"do": "sleep", "s": 0.05}}) for _ in range(40)]
    scene.wait("them to be under way", lambda: _ended(asked) + scene.deployment.told()["admitted"] >= len(asked))
    scene.injected += _ended(asked) < len(asked)
    code = scene.deployment.running.terminate()
    if code != 0:
        scene.problem(f"ended: with exit code {code}")
    for one in asked:
        one.answer()
    scene.deployment.running.gone()


def kill_supervisor(scene: Scene) -> None:
    """kill -9 of what started everything: nothing outlives it, and it can be started again in the same place."""
    scene.rest()
    running = scene.deployment.running
    running.signal(signal.SIGKILL)
    running.exited()
    scene.injected += 1
    running.gone()
    scene.deployment.start_again()
    scene.client.resume()


# --- everything together ----------------------------------------------------------------------------------------------


def anything(scene: Scene) -> None:
    """Some of many faults by chance, without waiting for the one before to be over."""
    for _ in range(4):
        scene.injected += scene.rng.choice(_ANYTHING)(scene)
        scene.flow(scene.rng.randrange(5, 40))


def _kill_any(scene: Scene) -> bool:
    victims = scene.place.workers(scene.rng.choice(("prep", "model")))
    for victim in victims[:1]:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    return bool(victims)


def _stop_any(scene: Scene) -> bool:
    victims = scene.place.workers("model")
    for victim in victims[:1]:
        with suppress(psutil.NoSuchProcess), scene.stopped(victim):
            scene.flow(scene.rng.randrange(5, 30))
    return False  # counted already


def _kill_the_broker(scene: Scene) -> bool:
    brokers = scene.deployment.running.processes("broker")
    for broker in brokers:
        with suppress(psutil.NoSuchProcess):
            broker.kill()
    return bool(brokers)


def _leave_soon(scene: Scene) -> bool:
    for _ in range(5):
        scene.ask(leaves_after_s=scene.rng.random() / 20)
    return True


def _hurry(scene: Scene) -> bool:
    for _ in range(5):
        scene.ask(deadline_s=0.001 + scene.rng.random() / 20, expects=BUSY)
    return True


_ANYTHING: Final[tuple[Callable[[Scene], bool], ...]] = (
    _kill_any, _kill_any, _stop_any, _kill_the_broker, _leave_soon, _hurry,
)  # fmt: skip


# --- helpers ----------------------------------------------------------------------------------------------------------


def _computed_again(scene: Scene, asked: Asked) -> None:
    """It is answered, and has been begun twice: so the fault did hit it."""
    asked.answer()
    if scene.times(asked) < 2:
        scene.problem("empty: what was meant to be hit was computed only once")


def _computed_once(scene: Scene, asked: Asked) -> None:
    """However often it was asked."""
    if scene.times(asked, "once") != 1:
        scene.problem(f"double: computed {scene.times(asked, 'once')} times")


@contextmanager
def _in_the_middle(scene: Scene, s: float = 0.4) -> Iterator[psutil.Process]:
    """A worker that computes a request now, which is then computed by another one."""
    asked, victim = scene.busy(s=s)
    yield victim
    _computed_again(scene, asked)


@contextmanager
def _deaths(scene: Scene, *, at_most: int, stage: str = "model") -> Iterator[None]:
    """Workers of a stage die meanwhile, and no more than so many."""

    def count() -> int:
        return sum(one["deaths"] for one in scene.deployment.told()["stages"] if one["name"] == stage)

    if scene.beside:
        yield
        return
    before = count()
    yield
    scene.whole()
    died = count() - before
    if not died:
        scene.problem("empty: nobody died")
    elif died > at_most:
        scene.problem(f"died: {died} workers, and at most {at_most} should")


@contextmanager
def _limited(what: int, soft: int, *processes: psutil.Process) -> Iterator[None]:
    """These, and what they start, may use less of something for a while."""
    before = [process.rlimit(what) for process in processes]
    for process, (_, hard) in zip(processes, before, strict=True):
        process.rlimit(what, (soft, hard))
    try:
        yield
    finally:
        started = set()
        for process, limits in zip(processes, before, strict=True):
            with suppress(psutil.NoSuchProcess):
                process.rlimit(what, limits)
                started |= set(process.children(recursive=True)) - set(processes)
        for process in started:  # meanwhile, and with what was left them
            with suppress(psutil.NoSuchProcess):
                process.rlimit(what, before[0])


def _ended(asked: Sequence[Asked]) -> int:
    return sum(one.future.done() for one in asked)


def _pass(seconds: float) -> None:
    threading.Event().wait(seconds)
