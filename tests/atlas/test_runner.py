"""The runner: one at a time, in a process of its own, within limits, and everything it says is a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from carrel.atlas.catalogue import UnknownMethod
from carrel.atlas.parameter import BadParameter
from carrel.atlas.work import Work

WAIT = 60.0  # seconds; a loaded machine starts processes slowly
FOREVER = """
import time
def run(*, seed, size):
    progress(0.25, "a quarter")
    time.sleep(600)
"""


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def until(condition, seconds: float = WAIT) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)


def test_a_run_gives_every_seed_its_value_and_keeps_the_worst(workshop, runner_of):
    workshop.add("good")
    runner = runner_of()
    job = runner.wait(runner.submit("good", {"size": "7"}), timeout=WAIT)
    assert (job.state, job.error) == ("done", "")
    (check,) = job.result.checks
    assert check.values == (7.0, 8.0, 9.0)
    assert check.worst == 7.0
    assert job.result.parameters == {"size": 7}
    assert job.result.curves[0].series[0].seeds[2] == (2.0, 3.0, 6.0, 11.0, 18.0, 27.0, 38.0)
    assert job.result.tables[0].rows == (("one", 8.0),)
    assert job.result.tables[0].spread == ((None, 1.0),)
    assert "torch" in job.result.versions
    assert job.result.machine


def test_progress_reaches_the_waiting_caller_and_ends_at_one(workshop, runner_of):
    workshop.add("good", "import time\n" + workshop_body_with_steps())
    runner = runner_of()
    seen = []
    runner.wait(runner.submit("good", seeds=2), lambda job: seen.append((job.state, job.fraction, job.note)), WAIT)
    fractions = [fraction for _, fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert ("running", 0.75, "seed 2 of 2, half way") in seen
    assert seen[-1] == ("done", 1.0, "")


def workshop_body_with_steps() -> str:
    return """
def run(*, seed, size):
    time.sleep(0.2)
    progress(0.5, "half way")
    time.sleep(0.2)
    report = Report("{slug}")
    report.check("one", 1, low=1)
    report.verdict("holds", "It does.")
    return report
"""


def test_the_worker_stays_warm_between_jobs(workshop, runner_of):
    workshop.add(
        "good",
        """
import os
def run(*, seed, size):
    report = Report("good")
    report.check("process", os.getpid(), low=1)
    report.verdict("holds", "It does.")
    return report
""",
    )
    runner = runner_of()
    pids = {
        runner.wait(runner.submit("good", seeds=1, fresh=True), timeout=WAIT).result.checks[0].worst for _ in range(3)
    }
    assert len(pids) == 1
    assert pids != {float(os.getpid())}


def test_an_answer_from_the_cache_does_not_cost_the_warm_worker(workshop, runner_of):
    workshop.add("good")
    runner = runner_of()
    runner.wait(runner.submit("good"), timeout=WAIT)
    warm = runner._worker.pid
    for _ in range(3):
        assert runner.submit("good").cached
        time.sleep(0.05)
    runner.wait(runner.submit("good", fresh=True), timeout=WAIT)
    assert runner._worker.pid == warm


def test_jobs_run_in_the_order_they_came_and_know_their_place(workshop, runner_of):
    workshop.add("long", FOREVER)
    workshop.add("good")
    runner = runner_of()
    first = runner.submit("long")
    until(lambda: first.state == "running")
    second, third = runner.submit("good"), runner.submit("good", {"size": 9})
    assert (first.position, second.position, third.position) == (0, 1, 2)
    assert runner.jobs() == [first, second, third]
    assert third.eta_s >= second.eta_s
    ended = []
    watchers = [
        threading.Thread(target=lambda job=job: (runner.wait(job, timeout=WAIT), ended.append(job)))
        for job in (second, third)
    ]
    for watcher in watchers:
        watcher.start()
    runner.cancel(first.id)
    for watcher in watchers:
        watcher.join()
    assert ended == [second, third]
    assert second.started < second.ended <= third.started
    assert [job.state for job in (first, second, third)] == ["cancelled", "done", "done"]


def test_a_waiting_job_that_is_cancelled_leaves_the_queue(workshop, runner_of):
    workshop.add("long", FOREVER)
    workshop.add("good")
    runner = runner_of()
    first, second, third = runner.submit("long"), runner.submit("good"), runner.submit("good", {"size": 9})
    assert runner.cancel(second.id)
    assert second.state == "cancelled"
    assert third.position <= 2
    until(lambda: first.state == "running")
    assert third.position == 1
    assert not runner.cancel(second.id), "it was over already"
    runner.cancel(first.id)
    assert runner.wait(third, timeout=WAIT).state == "done"


def test_a_running_job_that_is_cancelled_is_killed_and_the_next_gets_a_new_worker(workshop, runner_of):
    workshop.add("long", FOREVER)
    workshop.add("good")
    runner = runner_of()
    job = runner.submit("long")
    until(lambda: job.fraction > 0)
    pid = runner._worker.pid
    assert runner.cancel(job.id)
    assert runner.wait(job, timeout=5).state == "cancelled"
    assert job.result is None
    assert gone(pid)
    assert runner.wait(runner.submit("good"), timeout=WAIT).state == "done"


def test_what_the_worker_started_dies_with_it(workshop, runner_of, tmp_path):
    workshop.add(
        "parent",
        f"""
import subprocess, sys, time
def run(*, seed, size):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
    progress(0.5)
    time.sleep(600)
""",
    )
    runner = runner_of()
    job = runner.submit("parent")
    until(lambda: job.fraction > 0)
    child = int((tmp_path / "pid").read_text())
    runner.cancel(job.id)
    runner.wait(job, timeout=WAIT)
    # an orphan's end is reaped by init, which may not be there in a container: a zombie is dead enough
    until(lambda: gone(child) or "zombie" in Path(f"/proc/{child}/status").read_text(), 5)


def test_a_process_that_slipped_away_with_the_worker_s_pipes_does_not_hang_us(workshop, runner_of, tmp_path):
    workshop.add(
        "slippery",
        f"""
import subprocess, sys, time
def run(*, seed, size):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], start_new_session=True)
    open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
    progress(0.5)
    time.sleep(600)
""",
    )
    runner = runner_of()
    job = runner.submit("slippery")
    until(lambda: job.fraction > 0)
    runner.cancel(job.id)
    try:
        assert runner.wait(job, timeout=10).state == "cancelled"
    finally:
        os.kill(int((tmp_path / "pid").read_text()), 9)


def test_an_experiment_that_raises_fails_with_one_sentence_and_keeps_the_traceback(workshop, runner_of):
    workshop.add("bad", "def run(*, seed, size):\n    raise ValueError('heads must divide dim,\\ngot 3 and 10')\n")
    workshop.add("good")
    runner = runner_of()
    job = runner.wait(runner.submit("bad"), timeout=WAIT)
    assert job.state == "failed"
    assert job.error == "bad failed with seed 0: heads must divide dim, got 3 and 10"
    assert "Traceback" in job.log
    assert "bad.py" in job.log
    pid = runner._worker.pid
    assert runner.wait(runner.submit("good"), timeout=WAIT).state == "done"
    assert runner._worker.pid == pid, "an exception is no reason for a new worker"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def run(*, seed, size):\n    return 3\n", "the experiment returned int, a Report is wanted"),
        ("def run(*, seed, size):\n    return Report('x')\n", "the report is named 'x', the experiment 'odd'"),
        ("def run(*, seed, size):\n    return Report('odd')\n", "experiment 'odd' gave no verdict"),
        ("import nowhere_to_be_found\n", "nowhere_to_be_found is not installed"),
        ("def run(*, seed, size):\n    raise SystemExit(3)\n", "SystemExit: 3"),
        ("def run(*, seed):\n    pass\n", "unexpected keyword argument 'size'"),
        ("def run(*, seed, size)\n", "SyntaxError"),
    ],
)
def test_other_ways_to_fail_are_named(workshop, runner_of, body, said):
    workshop.add("odd", body)
    runner = runner_of()
    job = runner.wait(runner.submit("odd"), timeout=WAIT)
    assert job.state == "failed"
    assert said in job.error
    assert "\n" not in job.error


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "was killed by the system"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", "crashed with a segmentation fault"),
        ("import os, sys\nprint('out of paper', file=sys.stderr)\nos._exit(7)\n", "ended with status 7: out of paper"),
    ],
)
def test_a_worker_that_dies_is_reported_with_its_reason_and_replaced(workshop, runner_of, body, said):
    workshop.add("deadly", body)
    workshop.add("good")
    runner = runner_of()
    job = runner.wait(runner.submit("deadly"), timeout=WAIT)
    assert job.state == "failed"
    assert job.error.startswith("deadly did not finish: the worker ")
    assert said in job.error
    assert runner.wait(runner.submit("good"), timeout=WAIT).state == "done"


def test_a_worker_killed_while_idle_is_replaced(workshop, runner_of):
    workshop.add("good")
    runner = runner_of()
    runner.wait(runner.submit("good"), timeout=WAIT)
    os.kill(runner._worker.pid, 9)
    until(lambda: not runner._worker.alive)
    assert runner.wait(runner.submit("good", fresh=True), timeout=WAIT).state == "done"


def test_the_time_limit_ends_a_job_and_says_so(workshop, runner_of):
    workshop.add("long", FOREVER)
    runner = runner_of(time_limit_s=0.5)
    job = runner.wait(runner.submit("long"), timeout=WAIT)
    assert job.state == "failed"
    assert job.error == "long was stopped at the time limit of 0.5 s"
    assert runner._worker is None


def test_the_memory_limit_ends_a_job_and_says_so(workshop, runner_of):
    workshop.add(
        "hog",
        """
import time
def run(*, seed, size):
    held = []
    for _ in range(600):
        held.append(bytearray(b"x" * 2**20))
        time.sleep(0.005)
""",
    )
    runner = runner_of(memory_limit_mb=150)
    job = runner.wait(runner.submit("hog"), timeout=WAIT)
    assert job.state == "failed"
    assert job.error.startswith("hog was stopped at ")
    assert job.error.endswith(" MB of memory, above the limit of 150 MB")


def test_prints_by_any_road_do_not_corrupt_the_protocol(workshop, runner_of):
    workshop.add(
        "noisy",
        """
import os, subprocess, sys
print('{"event": "done"}')
def run(*, seed, size):
    print('{"event": "done"}', flush=True)
    sys.stdout.write("half a line")
    sys.__stdout__.write('{"event": "failed", "error": "forged", "log": ""}\\n')
    os.write(1, b'\\n{"event": "report", "report": 3}\\n')
    subprocess.run([sys.executable, "-c", "print('{}')"], check=True)
    subprocess.run(["cat"], check=True)  # standard input is empty, not the protocol
    assert sys.stdin.read() == ""
    report = Report("noisy")
    report.check("one", 1, low=1)
    report.verdict("holds", "It does.")
    return report
""",
    )
    runner = runner_of()
    job = runner.wait(runner.submit("noisy"), timeout=WAIT)
    assert (job.state, job.error) == ("done", "")
    assert len(job.result.checks[0].values) == 3
    assert "half a line" in runner._worker.tail


def test_a_flood_of_output_neither_blocks_the_worker_nor_fills_memory(workshop, runner_of):
    workshop.add(
        "flood",
        """
import sys
def run(*, seed, size):
    for _ in range(3000):
        print("x" * 10000)
    report = Report("flood")
    report.check("one", 1, low=1)
    report.verdict("holds", "It does.")
    return report
""",
    )
    runner = runner_of()
    job = runner.wait(runner.submit("flood", seeds=1), timeout=WAIT)
    assert job.state == "done"
    assert len(runner._worker.tail) < 300_000


def test_the_same_request_is_answered_from_the_cache(workshop, runner_of):
    workshop.add("good")
    runner = runner_of()
    first = runner.wait(runner.submit("good"), timeout=WAIT)
    again = runner.submit("good", {"size": "4"})  # the default, said aloud
    assert again.finished
    assert again.cached
    assert again.result.to_json() == first.result.to_json()
    assert not runner.submit("good", {"size": 5}).finished
    assert not runner.submit("good", seeds=2).finished
    assert not runner.submit("good", fresh=True).finished
    assert not runner.submit("good", quick=True).finished


def test_a_changed_experiment_is_run_again_by_a_new_worker(workshop, runner_of):
    workshop.add("good")
    runner = runner_of()
    runner.wait(runner.submit("good"), timeout=WAIT)
    pid = runner._worker.pid
    workshop.add("good", (Path(workshop.folder) / "experiments" / "good.py").read_text().replace("It does.", "It did."))
    job = runner.wait(runner.submit("good"), timeout=WAIT)
    assert not job.cached
    assert job.result.finding == "It did."
    assert runner._worker.pid != pid


def test_a_cache_that_cannot_be_written_does_not_lose_the_result(workshop, runner_of, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    workshop.add("good")
    runner = runner_of()
    job = runner.wait(runner.submit("good"), timeout=WAIT)
    assert job.state == "done"
    assert job.result.passed
    assert "could not be kept" in job.log


def test_asking_twice_for_the_same_run_gives_the_same_job(workshop, runner_of):
    workshop.add("long", FOREVER)
    runner = runner_of()
    job = runner.submit("long")
    assert runner.submit("long") is job
    assert runner.submit("long", {"size": 5}) is not job


def test_bad_requests_are_refused_before_they_queue(workshop, runner_of):
    workshop.add("good")
    runner = runner_of()
    with pytest.raises(UnknownMethod, match="did you mean good"):
        runner.submit("goood")
    with pytest.raises(BadParameter, match="size must be between 1 and 100 things, got 500"):
        runner.submit("good", {"size": "500"})
    with pytest.raises(ValueError, match="seeds must be between 1 and 100, got 0"):
        runner.submit("good", seeds=0)
    with pytest.raises(LookupError, match="there is no run 'nope'"):
        runner.job("nope")
    assert runner.jobs() == []
    assert runner._worker is None


def test_waiting_can_time_out_and_the_job_goes_on(workshop, runner_of):
    workshop.add("long", FOREVER)
    runner = runner_of()
    job = runner.submit("long")
    with pytest.raises(TimeoutError, match=r"long was still (queued|running) after 0\.05 s"):
        runner.wait(job, timeout=0.05)
    until(lambda: job.fraction == pytest.approx(0.25 / 3))


def test_close_ends_the_worker_and_cancels_what_waits(workshop, runner_of):
    workshop.add("long", FOREVER)
    workshop.add("good")
    runner = runner_of()
    running, waiting = runner.submit("long"), runner.submit("good")
    until(lambda: running.fraction > 0)
    pid = runner._worker.pid
    runner.close()
    runner.close()
    assert (running.state, waiting.state) == ("cancelled", "cancelled")
    assert gone(pid)
    with pytest.raises(RuntimeError, match="closed"):
        runner.submit("good")


def test_an_idle_worker_is_let_go(workshop, runner_of):
    workshop.add("good")
    runner = runner_of(idle_s=0.2)
    runner.wait(runner.submit("good"), timeout=WAIT)
    until(lambda: runner._worker is None)
    assert runner.wait(runner.submit("good", fresh=True), timeout=WAIT).state == "done"


def test_a_worker_whose_parent_is_killed_does_not_stay_behind(workshop, tmp_path):
    workshop.add("long", FOREVER)
    script = f"""
import time
from pathlib import Path
from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.runner import Runner
runner = Runner(load_catalogue(Path({str(workshop.folder / "cards")!r})), cache=Path({str(tmp_path / "cache")!r}))
job = runner.submit("long")
while not job.fraction:
    time.sleep(0.01)
print(runner._worker.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    until(lambda: gone(worker) or "zombie" in Path(f"/proc/{worker}/status").read_text(), 10)


def test_the_runner_loads_no_torch():
    code = "import carrel.atlas.runner, carrel.atlas.figure, carrel.atlas.console, sys; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_work_of_another_folder_with_seeds_of_its_own_joins_the_queue_and_the_worker(workshop, runner_of, tmp_path):
    workshop.add("good")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    source = (workshop.folder / "experiments" / "good.py").read_text().replace('Report("good")', 'Report("other")')
    (elsewhere / "other.py").write_text(source)
    work = Work("other", "Other", "It adds up.", elsewhere / "other.py", {"size": 4}, seeds=(7, 5))
    runner = runner_of()
    runner.wait(runner.submit("good"), timeout=WAIT)
    pid = runner._worker.pid
    job = runner.wait(runner.enqueue(work), timeout=WAIT)
    assert (job.state, job.slug, job.result.checks[0].values) == ("done", "other", (11.0, 9.0))
    assert runner._worker.pid == pid
    assert runner.enqueue(work).cached
    (elsewhere / "other.py").write_text(source.replace("It does.", "It did."))
    assert runner.wait(runner.enqueue(work), timeout=WAIT).result.finding == "It did."
    assert runner._worker.pid != pid, "what it had loaded has changed"
