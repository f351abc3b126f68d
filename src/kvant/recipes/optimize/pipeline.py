"""The main job, top to bottom: from a model to the best small version for a budget, measured.

    open the model ─► measure it on calibration text, if asked
        ─► for each format: plan every preset and the best mixes, predict size, memory and speed
                            ─► keep what fits the budget ─► encode and measure, most promising first
                            ─► correct the predictions by that, measure the mixes that are best then ─► take the best
        ─► write what was taken, with a report that says why

Every step is a call to the part of kvant that does it; read on there: `search.py` is the way of one format. Nothing is
encoded that cannot fit, and what was encoded and measured is kept in the cache, so that an interrupted run takes up
where it stopped.
"""

from collections.abc import Sequence
from pathlib import Path

from kvant.devices.detect import detect
from kvant.devices.profiles import device_for
from kvant.errors import KvantError, LicenceError, OutputExistsError, UnsupportedModelError
from kvant.formats.imatrix import read_imatrix
from kvant.hub.licences import check_model
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.importance import Importance
from kvant.quant.matching import check_fits
from kvant.recipes.companion import Companion
from kvant.recipes.goal import goal_of
from kvant.recipes.measure.calibration import calibrate, check_way
from kvant.recipes.measure.sample import PROMPT, TOKENS, Sample, Samples, continuation
from kvant.recipes.measure.textname import NONE
from kvant.recipes.optimize.choose import pick
from kvant.recipes.optimize.clock import Clock
from kvant.recipes.optimize.delivery import check_directory, deliver
from kvant.recipes.optimize.outcome import Outcome
from kvant.recipes.optimize.request import Request
from kvant.recipes.optimize.schedule import in_time
from kvant.recipes.optimize.schema import RECIPE_FILE, write_recipe
from kvant.recipes.optimize.search import Search, search_format
from kvant.recipes.optimize.yardstick import Yardstick, check_formats, checked_measure, fitted_request, planned
from kvant.recipes.projectors import check_wish, companion_of
from kvant.recipes.report.report import Report
from kvant.recipes.source import open_model
from kvant.recipes.targets.base import Material, Target
from kvant.recipes.targets.registry import targets_of


def optimize(request: Request | Path | str, *, progress: Progress = SILENT) -> Report:
    """Make the best variant of a model that keeps a budget, and a report that says how it was found.

    Args:
        request: What is asked for, see `Request`; of a path alone, the smallest file that is close to the original.
        progress: Told of every step.

    Returns:
        The report; it is also written beside the file, as `report.html` and `report.json`.

    Raises:
        BudgetError: No variant keeps the budget.
        LicenceError: The model's licence is neither allowed nor accepted.
        OutputExistsError: Another file has the output's name.
        KvantError: The model, the text or the importance cannot be used; see `open_model` and `evaluate`.
    """
    request = request if isinstance(request, Request) else Request(source=Path(request))
    clock = Clock(limit_s=request.time_s)
    check_directory(request.out)
    check_way(request.statistics)
    machine = detect()
    model = open_model(request.source, progress=progress)
    measure = checked_measure(model)
    request, goal = fitted_request(request, model, measure), goal_of(request.budget, measure)
    targets = targets_of(request.formats, model, request.presets)
    check_formats(targets, measure)
    device = device_for(request.budget.device, machine)
    budget = planned(request.budget, device, measure)
    check_model(model, accepted=request.accepted_licences)
    companion = find_companion(request, targets, progress)
    request = in_time(request, model, sum(target.points for target in targets), clock, progress)
    calibration = None
    if request.calibrate != NONE:
        calibration = calibrate(
            model, request.calibrate, windows=request.calibrate_windows, seed=request.calibrate_seed,
            way=request.statistics, ram_bytes=request.calibrate_ram_bytes, threads=request.threads, progress=progress,
        )  # fmt: skip
    importance = importance_of(request, model) or (calibration.importance if calibration else None)
    material = Material(
        model=model, machine=machine, device=device, importance=importance, calibration=calibration, budget=budget,
        context=request.context, threads=max(1, (request.threads or machine.cores) // request.jobs), progress=progress,
        companion=companion,
    )  # fmt: skip
    yardstick = Yardstick(request, material, measure, clock)

    searches: list[Search] = []
    failures: list[tuple[str, KvantError]] = []
    for target in targets:
        try:
            searches.append(search_format(target, material, goal, yardstick))
        except (LicenceError, OutputExistsError):
            raise
        except KvantError as error:  # what one format cannot do must not cost the others' results
            failures.append((target.name, error))
    if not searches:
        for name, failure in failures[1:]:
            progress.say(f"{name}: {failure}")
        raise failures[0][1]

    best = pick([search.taken for search in searches], goal) or searches[0].taken
    outcome = Outcome(
        material=material, yardstick=yardstick, goal=goal, searches=searches, best=best,
        left_out=tuple(f"{name}: {error}" for name, error in failures), samples=make_samples(searches, yardstick),
    )  # fmt: skip
    report = deliver(outcome, request)
    write_recipe(Path(report.path).with_name(RECIPE_FILE), request)
    return report


def find_companion(request: Request, targets: Sequence[Target], progress: Progress) -> Companion | None:
    """Return the projector that goes with what is written, and say what it takes of the limits.

    Raises:
        KvantError: The model sees or hears, and its projector cannot be had.
    """
    check_wish(request.projector)
    if not any(target.takes_projector for target in targets):
        return None
    found = companion_of(request.source, request.projector, progress=progress)
    if found is not None:
        progress.say(f"With its projector, {found.type}: {found.in_words()}, which count within the limits.")
    elif request.projector is not None and request.projector.lower() != NONE:
        raise UnsupportedModelError(
            f"{request.source}: has no projector: no eyes or ears that one is written of, and no mmproj-*.gguf of its "
            "width beside it. Leave --mmproj out."
        )
    return found


def importance_of(request: Request, model: Model) -> Importance | None:
    """Read the importance file of a request, if there is one.

    Raises:
        PlanError: It names no tensor of the model.
    """
    if request.imatrix is None:
        return None
    importance = read_imatrix(request.imatrix)
    check_fits(importance, model)
    return importance


def make_samples(searches: list[Search], yardstick: Yardstick) -> Samples | None:
    """Let the original and the picks continue a prompt; with what degraded variants said when they were measured.

    None of a model that writes no text.
    """
    if not yardstick.measure.writes:
        return None
    threads, said = yardstick.threads, list[Sample]()
    for search in searches:
        for variant in sorted(search.measured, key=lambda v: (v is not search.taken, -v.candidate.size_bytes)):
            made = search.workshop.make(variant.candidate, threads=threads) if variant is search.taken else None
            text = search.workshop.continuation(variant.candidate, made, threads=threads)
            if text is not None:
                said.append(Sample(name=variant.candidate.name, text=text))
    original = continuation(yardstick.original.file, yardstick.original.sha256, threads=threads)
    return Samples(prompt=PROMPT, tokens=TOKENS, original=original, variants=tuple(said))
