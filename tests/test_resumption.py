"""`prune --resume` against a run that nothing disturbed: stopped in every phase, by a signal, by a disk that is full."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from interrupts import stop
from secateur import disk, pipeline, resumption, signals, text_workbench
from secateur.errors import OutputError, RequestError, WriteError
from secateur.methods import METHODS
from secateur.pipeline import Pruned, Target, TextSettings, prune
from secateur.resumption import work_directory
from secateur.surgery.weights import load_weights_, save_weights
from secateur.training import checkpoints
from secateur.training.recovery import Recovery

FEW: dict[str, Any] = {"joint_steps": 3, "steps": 4, "gate_sequences": 3, "scoring_steps": 3, "scoring_rank": 2}
EVERY = 0.0  # minutes: a checkpoint after every step
TIMES = ("timings", "created", "peak_memory_bytes")


def method(name: str, **settings: Any) -> Any:
    known = METHODS[name].__dataclass_fields__
    return METHODS[name](**{key: value for key, value in {**FEW, **settings}.items() if key in known})


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextSettings:
    """Sentences to calibrate and to measure on."""
    folder = tmp_path_factory.mktemp("text")
    lines = [f"Sentence {n} says that {n} times {n} is {n * n}, and nothing else.\n\n" for n in range(400)]
    (folder / "train.txt").write_text("".join(lines[:300]))
    (folder / "test.txt").write_text("".join(lines[300:]))
    return TextSettings(
        data=str(folder / "train.txt"), eval_data=str(folder / "test.txt"),
        sequence_length=32, num_sequences=8, num_eval_sequences=4, batch_size=4,
    )  # fmt: skip


RUNS: dict[str, dict[str, Any]] = {
    "elder": {"method": method("elder"), "recovery": Recovery(recover="full", recover_tokens=8 * 32)},
    "lora": {"method": method("elder", train="lora"), "recovery": Recovery(recover="lora", recover_tokens=8 * 32)},
    "distill": {
        "method": method("elder", train="partial"), "recovery": Recovery(recover="distill", recover_tokens=8 * 32),
    },
    "gradpruner": {"method": method("gradpruner")},
    "laco": {"method": method("laco")},
}  # fmt: skip


def run(checkpoint: Path, text: TextSettings, out: Path, kind: str, **options: Any) -> Pruned:
    options = {"checkpoint_minutes": EVERY, "target": Target(drop=2), "precision": "fp32", **RUNS[kind], **options}
    return prune(checkpoint, text=text, out=out, seed=3, speed=False, prompts=("a",), command=["secateur"], **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, text: TextSettings) -> Any:
    """A run of each kind, made when it is first needed, with no checkpoints; do not write into them."""
    folder, made = tmp_path_factory.mktemp("undisturbed"), {}

    def of(kind: str, precision: str = "fp32") -> Pruned:
        name = f"{kind}-{precision}"
        if name not in made:
            out = folder / name
            made[name] = run(tiny_checkpoint, text, out, kind, checkpoint_minutes=60.0, precision=precision)
        return made[name]

    return of


def same(result: Pruned, expected: Pruned) -> None:
    """The same files; weights and plan byte for byte, and every figure that is not a time."""
    ours, theirs = ({p.relative_to(r.path) for p in r.path.rglob("*")} for r in (result, expected))
    assert ours == theirs
    for file in ("model.safetensors", "config.json", "secateur/plan.json"):
        assert (result.path / file).read_bytes() == (expected.path / file).read_bytes(), file
    one, other = (json.loads((r.path / "secateur" / "record.json").read_text()) for r in (result, expected))
    for record in (one, other):
        for name in TIMES:
            del record[name]
        (record["recovery"] or {}).pop("seconds", None)
    assert one == other
    assert not work_directory(result.path).exists()


PHASES: dict[str, tuple[Any, str, int]] = {
    "dense measured": (resumption.Work, "once", 1),
    "chosen": (resumption.Work, "once", 2),
    "second step of stage 2": (checkpoints._Checkpoints, "on_save", 2),
    "prepared": (resumption.Work, "once_with_weights_", 1),
    "third step of recovery": (checkpoints._Checkpoints, "on_save", 7),  # stage 2 has 4, the last of which needs none
    "written": (pipeline, "write_about", 1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "phase", "precision"),
    [("elder", phase, "fp32") for phase in PHASES]
    + [(kind, phase, "fp32") for kind in ("lora", "distill") for phase in PHASES if "step" in phase]
    + [("elder", "prepared", "bf16")]
    + [(kind, "third step of recovery", "bf16") for kind in ("elder", "lora", "distill")],
)
def test_resumed_run_ends_with_the_bytes_and_figures_of_the_undisturbed(
    undisturbed: Any, tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, kind: str, phase: str, precision: str
) -> None:
    expected, out = undisturbed(kind, precision), tmp_path / "out"
    owner, name, call = PHASES[phase]
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop(monkeypatch, owner, name, call - ("recovery" in phase))
        with pytest.raises(KeyboardInterrupt, match=r"is kept in .*out\.work; run the same command with --resume"):
            run(tiny_checkpoint, text, out, kind, precision=precision)
    assert [path.name for path in tmp_path.iterdir()] == ["out.work"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        if phase != "dense measured":  # what was chosen is not chosen again
            monkeypatch.setattr(type(RUNS[kind]["method"]), "plan", None)
        steps = count_steps(monkeypatch)
        same(run(tiny_checkpoint, text, out, kind, precision=precision, resume=True), expected)
    # Steps of the four of stage 2 and of the four of the recovery that were done again.
    again = {"dense measured": 8, "chosen": 8, "second step of stage 2": 6, "prepared": 4, "third step of recovery": 1}
    assert steps[0] == again.get(phase, 0)


@pytest.mark.parametrize(
    ("phase", "chosen", "prepared"), [("chosen", 0, 1), ("second step of stage 2", 0, 0.5), ("prepared", 0, 0)]
)
def test_line_ahead_of_a_resumed_run_counts_what_is_left(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, phase: str, chosen: float, prepared: float
) -> None:
    """Stage 2 has four steps; a recovery has not begun."""
    original, costs = pipeline.preflight, list[Any]()

    def ahead(decoder: Any, data: Any, held_out: Any, cost: Any, *args: Any, **rest: Any) -> str:
        costs.append(cost)
        return original(decoder, data, held_out, cost, *args, **rest)

    owner, name, call = PHASES[phase]
    for resume, moment in (False, (owner, name, call)), (True, (resumption.Work, "begin", 1)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(pipeline, "preflight", ahead)
            stop(monkeypatch, *moment)
            with pytest.raises(KeyboardInterrupt):
                run(tiny_checkpoint, text, tmp_path / "out", "elder", resume=resume)
    whole, left = costs
    assert left.choose_tokens == chosen * whole.choose_tokens
    assert left.prepare_tokens == prepared * whole.prepare_tokens
    assert left.recover_tokens == whole.recover_tokens
    assert (whole.choose_tokens, whole.prepare_tokens, whole.recover_tokens) > (0, 0, 0)
    assert left.preparing == whole.preparing, "the memory is that of the whole run"


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps are trained from here on."""
    from secateur.training.removal import _RemovalTrainer

    original, steps = _RemovalTrainer.training_step, [0]

    def step(*args: Any, **rest: Any) -> Any:
        steps[0] += 1
        return original(*args, **rest)

    monkeypatch.setattr(_RemovalTrainer, "training_step", step)
    return steps


@pytest.mark.parametrize("kind", ["gradpruner", "laco"])
def test_plan_that_is_read_prepares_as_one_just_made(
    undisturbed: Any, tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, kind: str
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop(monkeypatch, resumption.Work, "once_with_weights_", 1, after=False)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_checkpoint, text, tmp_path / "out", kind)
    same(run(tiny_checkpoint, text, tmp_path / "out", kind, resume=True), undisturbed(kind))


def test_short_runs_write_no_weights_for_resuming_and_are_resumed_all_the_same(
    undisturbed: Any, tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop(monkeypatch, pipeline, "write_about", 1)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_checkpoint, text, tmp_path / "out", "elder", checkpoint_minutes=5.0)
    assert not list(work_directory(tmp_path / "out").rglob("*.safetensors"))
    same(run(tiny_checkpoint, text, tmp_path / "out", "elder", resume=True), undisturbed("elder"))


def test_half_a_phase_is_never_read(
    undisturbed: Any, tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    """As SIGKILL leaves it: a directory of another name, a checkpoint without its mark."""
    out, work = tmp_path / "out", work_directory(tmp_path / "out")
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop(monkeypatch, checkpoints._Checkpoints, "on_save", 2)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_checkpoint, text, out, "elder")
    whole = work / "prepared-training" / "checkpoint-2"
    (work / ".prepared.abc.tmp").mkdir()
    (work / ".prepared.abc.tmp" / "weights.safetensors").write_bytes(b"half")
    half = whole.with_name("checkpoint-3")
    half.mkdir()
    (half / "trained.safetensors").write_bytes(b"half")
    same(run(tiny_checkpoint, text, out, "elder", resume=True), undisturbed("elder"))


@pytest.mark.parametrize(
    ("owner", "name", "call", "damaged", "steps"),
    [
        (checkpoints._Checkpoints, "on_save", 2, "prepared-training/checkpoint-2/trained.safetensors", 8),
        (checkpoints._Checkpoints, "on_save", 2, "prepared-training/checkpoint-2/optimizer.pt", 8),
        (checkpoints._Checkpoints, "on_save", 2, "prepared-training/checkpoint-2/secateur.json", 8),
        (resumption.Work, "once_with_weights_", 1, "prepared/weights.safetensors", 8),
        (resumption.Work, "once_with_weights_", 1, "prepared/result.json", 8),
    ],
)
def test_what_was_damaged_is_done_again(
    undisturbed: Any, tiny_checkpoint: Path, text: TextSettings, tmp_path: Path,
    owner: Any, name: str, call: int, damaged: str, steps: int,
) -> None:  # fmt: skip
    """A byte that a disk has turned over: the run begins the phase anew instead of going on from it."""
    expected, out = undisturbed("elder"), tmp_path / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop(monkeypatch, owner, name, call)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_checkpoint, text, out, "elder")
    file = work_directory(out) / damaged
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as monkeypatch:
        trained = count_steps(monkeypatch)
        same(run(tiny_checkpoint, text, out, "elder", resume=True), expected)
    assert trained == [steps]


def test_run_that_was_killed_when_its_result_was_in_place_is_done(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:  # SIGKILL leaves the work directory
        monkeypatch.setattr(resumption.Work, "forget", lambda _: None)
        result = run(tiny_checkpoint, text, out, "laco")
    before = (out / "secateur" / "record.json").read_bytes()
    with pytest.raises(
        RequestError, match=r"which is finished, had another target \(drop: 2 then, 1 now\); give the same"
    ):
        run(tiny_checkpoint, text, out, "laco", resume=True, target=Target(drop=1))
    again = run(tiny_checkpoint, text, out, "laco", resume=True)
    assert (again.plan, again.proof, again.record) == (result.plan, result.proof, json.loads(before))
    assert (out / "secateur" / "record.json").read_bytes() == before
    assert not work_directory(out).exists()


def test_finished_run_that_is_resumed_hands_over_its_result_and_no_other_runs(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(tiny_checkpoint, text, out, "laco")
    assert not work_directory(out).exists()
    there = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.MonkeyPatch.context() as elsewhere:  # a job that is started anew may be so on another machine
        elsewhere.setattr(resumption, "versions", lambda: {"torch": "9", "device": "another"})
        elsewhere.setattr(pipeline, "load_model", None)
        again = run(tiny_checkpoint, text, out, "laco", resume=True)
    assert (again.plan, again.proof, again.record["metrics"]) == (result.plan, result.proof, result.record["metrics"])
    with pytest.raises(
        RequestError, match=r"which is finished, had another target \(drop: 2 then, 1 now\); give the same"
    ):
        run(tiny_checkpoint, text, out, "laco", resume=True, target=Target(drop=1))
    with pytest.raises(RequestError, match="there is nothing to resume"):  # it may replace that one, but had not begun
        run(tiny_checkpoint, text, out, "laco", resume=True, overwrite=True, target=Target(drop=1))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == there
    (out / "secateur" / "request.json").write_text("[]")
    with pytest.raises(OutputError, match="is not empty"):
        run(tiny_checkpoint, text, out, "laco", resume=True)


def test_run_goes_on_only_as_it_began(tiny_checkpoint: Path, text: TextSettings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RequestError, match=r"there is nothing to resume: .*leave --resume out"):
        run(tiny_checkpoint, text, out, "laco", resume=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop(monkeypatch, resumption.Work, "once", 2)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_checkpoint, text, out, "laco")
    with pytest.raises(RequestError, match=r"out\.work holds an unfinished run; add --resume"):
        run(tiny_checkpoint, text, out, "laco")
    for other, named in (
        ({"target": Target(drop=3)}, r"target \(drop: 2 then, 3 now\); give the same options"),
        ({"target": Target(layers=(1, 2))}, r"target \(drop: 2 then, null now; layers: null then, \[1, 2\] now\);"),
        ({"method": "shortgpt"}, r"method \(name: laco then, shortgpt now;"),
    ):
        with pytest.raises(RequestError, match=rf"the unfinished run in .*out\.work had another {named}"):
            run(tiny_checkpoint, text, out, "laco", resume=True, **other)
    data = Path(text.data)
    before = data.read_text()
    try:
        data.write_text(before.replace("says", "said"))
        with pytest.raises(RequestError, match=r"the unfinished run in .*out\.work had another texts"):
            run(tiny_checkpoint, text, out, "laco", resume=True)
    finally:
        data.write_text(before)
    for resume in (True, False):
        with (
            disk.held(work_directory(out)),
            pytest.raises(RequestError, match=r"another process is at the run in .*out\.work"),
        ):
            run(tiny_checkpoint, text, out, "laco", resume=resume)
    assert (work_directory(out) / "choice.json").is_file()


# ---- a full disk -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(resumption, "write_sealed", 1), (torch, "save", 2), (resumption, "save_weights", 1)],
    ids=["figures", "checkpoint", "weights"],
)
def test_full_disk_is_one_line_and_the_run_goes_on_from_what_is_whole(
    undisturbed: Any, tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, owner: Any, name: str, call: int
) -> None:
    out, calls = tmp_path / "out", [0]
    original = getattr(owner, name)

    def full(*args: Any, **rest: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            if owner is torch:
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args, **rest)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(owner, name, full)
        with pytest.raises(
            WriteError, match=r"the disk is full: cannot write .*out\.work.*is free; .*make room"
        ) as caught:
            run(tiny_checkpoint, text, out, "elder")
    assert "\n" not in str(caught.value)
    if work_directory(out).exists():
        assert not list(work_directory(out).glob(".*"))
        assert all((folder / "secateur.json").is_file() for folder in work_directory(out).glob("*/checkpoint-*"))
    same(run(tiny_checkpoint, text, out, "elder", resume=work_directory(out).exists()), undisturbed("elder"))


def test_less_room_than_it_takes_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(WriteError, match=r"cannot write .*big; it takes about 1000000\.0 TB, and .*B is free; remedy"),
        disk.full_disk_named(tmp_path / "big", needs=10**18, then="remedy"),
    ):
        raise AssertionError("written")


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="something else"), disk.full_disk_named(tmp_path, then="remedy"):
        raise RuntimeError("something else")


# ---- signals -------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_ends_the_step_and_records_it_and_the_run_goes_on_after_it(
    undisturbed: Any, tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, number: int
) -> None:
    expected, out, said = undisturbed("elder"), tmp_path / "out", []
    with pytest.MonkeyPatch.context() as monkeypatch, signals.watched(said.append) as watch:
        steps = count_steps(monkeypatch)
        original = checkpoints._Checkpoints.on_step_end

        def send(*args: Any, **rest: Any) -> None:
            if steps[0] == 2:
                os.kill(os.getpid(), number)
            original(*args, **rest)

        monkeypatch.setattr(checkpoints._Checkpoints, "on_step_end", send)
        with pytest.raises(KeyboardInterrupt, match="--resume to go on"):
            run(tiny_checkpoint, text, out, "elder", checkpoint_minutes=5.0)
        assert watch.number == number
    assert said == ["finishing this step, to go on from it later; once more stops at once"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        steps = count_steps(monkeypatch)
        same(run(tiny_checkpoint, text, out, "elder", resume=True), expected)
    assert steps[0] == 6  # of 8


def test_second_signal_stops_at_once() -> None:
    with signals.watched(lambda _: None):
        done = []
        with pytest.raises(KeyboardInterrupt), signals.finishing():  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            done.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(2)
        assert done == [1]


def test_signals_while_one_unwinds_are_that_one_and_a_later_one_stops_the_cleaning_up(monkeypatch) -> None:
    now, done = [0.0], []
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with signals.watched(lambda _: None), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGINT)
            done.append("not stopped")
        finally:
            now[0] = 0.9
            os.kill(os.getpid(), signal.SIGINT)
            done.append("cleaned up")
            now[0] = 1.1
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("not stopped again")
    assert done == ["cleaned up"]


def test_signal_takes_effect_at_the_end_of_the_outermost_block_and_at_once_outside_of_any() -> None:
    done = []
    with signals.watched(lambda _: None), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with signals.finishing():
            with signals.finishing():
                os.kill(os.getpid(), signal.SIGINT)
                done.append(1)
            done.append(2)
        done.append(3)
    assert done == [1, 2]
    with signals.watched(lambda _: None), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(4)
    assert done == [1, 2]


def test_signals_are_left_alone_where_nobody_watches() -> None:
    before = signal.getsignal(signal.SIGINT)
    with signals.finishing():
        assert signal.getsignal(signal.SIGINT) is before
        assert not signals.asked_to_stop()
    with signals.watched():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


# ---- files -----------------------------------------------------------------------------------------------------------------


def test_weights_come_back_to_the_bit_and_only_into_the_same_model(tiny_model: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_weights(tiny_model, file)
    before = {name: weight.detach().clone() for name, weight in tiny_model.named_parameters()}
    with torch.no_grad():
        for weight in tiny_model.parameters():
            weight.zero_()
    load_weights_(tiny_model, file)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model.named_parameters())
    with pytest.raises(Exception, match=r"is of another model: .* differs in shape or dtype"):
        load_weights_(tiny_model.half(), file)


def test_what_a_killed_writer_left_is_swept_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with disk.temporary_beside(target) as living:
        dead = tmp_path / ".out.dead.tmp"
        dead.mkdir()
        other = tmp_path / ".other.dead.tmp"
        other.mkdir()
        disk.sweep(target)
        assert living.is_dir()
        assert not dead.exists()
        assert other.exists()


def test_checkpoint_that_was_put_aside_when_its_replacement_was_killed_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".out.abc.old"
    aside.mkdir()
    (aside / "config.json").write_text("old")
    disk.sweep(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == "old"


# ---- the log -------------------------------------------------------------------------------------------------------------


def test_log_is_in_the_output_says_what_was_done_and_has_no_token(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "a-secret-of-this-environment"  # noqa: S105
    monkeypatch.setenv("HF_TOKEN", secret)
    command = ["secateur", "prune", "--token", "hf_abcdefghijkl", f"--eval-data=https://me:{secret}@host/x"]
    result = prune(
        tiny_checkpoint, method="random", text=text, target=Target(drop=2), out=tmp_path / "out", speed=False,
        prompts=(), command=command,
    )  # fmt: skip
    log = (result.path / "secateur" / "run.log").read_text()
    assert "secateur prune --token '***'" in log
    assert "layers to drop: " in log
    about = [path.read_text() for path in (result.path / "secateur").iterdir()] + [
        (result.path / "README.md").read_text()
    ]
    for written in about:
        assert secret not in written
        assert "hf_abc" not in written


def test_a_run_that_was_killed_before_it_had_begun_is_begun_by_resume(
    tiny_checkpoint: Path, text: TextSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work_directory(out).mkdir()
    (work_directory(out) / "run.log").write_text("half a line")
    run(tiny_checkpoint, text, out, "laco", resume=True)
    assert (out / "model.safetensors").is_file()
    assert not work_directory(out).exists()


@pytest.mark.parametrize("name", ["request.json", "dense.json", "choice.json"])
def test_a_damaged_file_of_the_work_is_named_with_the_remedy(
    name: str, tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        stop(patched, text_workbench, "write_and_prove")
        with pytest.raises(KeyboardInterrupt):
            run(tiny_checkpoint, text, out, "laco")
    (work_directory(out) / name).write_text('{"half')
    with pytest.raises(RequestError, match=rf"{name} is damaged.*remove .*out\.work to start over"):
        run(tiny_checkpoint, text, out, "laco", resume=True)


@pytest.mark.parametrize("name", ["plan.json", "plan.json.sha256"])
def test_a_plan_that_is_another_than_was_written_is_not_gone_on_from(
    name: str, tiny_checkpoint: Path, text: TextSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte that a disk has turned over leaves a plan that reads well, of other layers."""
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        stop(patched, text_workbench, "write_and_prove")
        with pytest.raises(KeyboardInterrupt):
            run(tiny_checkpoint, text, out, "laco")
    file = work_directory(out) / name
    if name == "plan.json":
        plan = json.loads(file.read_text())
        file.write_text(json.dumps({**plan, "order": [(layer + 1) % 6 for layer in plan["order"]]}))
    else:
        file.write_bytes(b"\xff" * 64)  # no text at all
    with pytest.raises(RequestError, match=r"plan\.json is damaged.*remove .*out\.work to start over"):
        run(tiny_checkpoint, text, out, "laco", resume=True)


def test_no_token_is_in_what_was_asked_for(tiny_checkpoint: Path, text: TextSettings, tmp_path: Path) -> None:
    recovery = Recovery(recover="lora", recover_tokens=8 * 32, recover_trainer={"run_name": "hf_abcdefghijklmnop"})
    out = tmp_path / "out"
    run(tiny_checkpoint, text, out, "laco", recovery=recovery)
    for file in (file for file in out.rglob("*") if file.suffix in (".json", ".md", ".html", ".log")):
        assert "hf_abcdefghijklmnop" not in file.read_text(encoding="utf-8"), file
    assert json.loads((out / "secateur" / "request.json").read_text())["recovery"]["recover_trainer"] == {
        "run_name": "***"
    }
