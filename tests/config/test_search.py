"""What a search may say, and where it is told that it may not."""

from pathlib import Path

import pytest

from raycnn.config.search import Pool, load_resolved_search
from raycnn.config.yaml_file import dump
from raycnn.errors import SpecError
from raycnn.search.preflight import check_search
from tests.support.runs import train
from tests.support.searches import BASE, SPACE, Read


def test_without_architectures_the_job_is_the_only_one(read: Read) -> None:
    search = read()
    assert [(a.name, a.job.name) for a in search.architectures] == [("lenet", "tiny")]


def test_an_architecture_is_a_model_a_job_or_changes_to_the_base(
    read: Read, tmp_path: Path
) -> None:
    other = BASE.replace("name: tiny", "name: other").replace("lr: 0.05", "lr: 0.07")
    (tmp_path / "other.yaml").write_text(other.replace("STORAGE", str(tmp_path)))
    found = read(
        "architectures:\n"
        "  - lenet\n"
        "  - other.yaml\n"
        "  - {name: deep, model: {name: alexnet, form: small}, optimizer.lr: 0.5}\n"
        "  - {name: slow, job: other.yaml, train: {epochs: 9}, space: {train.epochs: {grid: [1, 2]}}}\n"
        + SPACE
    ).architectures
    assert [a.name for a in found] == ["lenet", "other", "deep", "slow"]
    assert [a.job.model.name for a in found] == ["lenet", "lenet", "alexnet", "lenet"]
    assert found[0].job.model.options == {}, "a model's name alone takes no options over"
    assert [a.job.optimizer.options["lr"] for a in found] == [0.05, 0.07, 0.5, 0.07]
    assert found[3].job.train.epochs == 9
    assert sorted(found[3].space) == ["optimizer.lr", "train.epochs"]
    assert [a.trials(2) for a in found] == [2, 2, 2, 4]


def test_a_resolved_search_reads_as_it_was(read: Read, tmp_path: Path) -> None:
    search = read("architectures: [lenet]\n" + SPACE)
    with (tmp_path / "search.yaml").open("w") as file:
        dump(search.tree(), file)
    assert load_resolved_search(tmp_path / "search.yaml").tree() == search.tree()


def test_changes_of_the_command_line_reach_job_and_search(read: Read) -> None:
    search = read(SPACE, "train.epochs=7", "tune.trials=5")
    assert search.architectures[0].job.train.epochs == 7
    assert search.tune.trials == 5


@pytest.mark.parametrize(
    "change",
    ["tune.space={optimizer.lr: {uniform: [2, 3]}}", "tune.space.optimizer.lr={uniform: [2, 3]}"],
)
def test_a_change_gives_a_searched_key_another_kind_of_domain(read: Read, change: str) -> None:
    space = "  space: {optimizer.lr: {loguniform: [0.1, 1]}, train.epochs: {choice: [1, 2]}}\n"
    found = read(f"tune:\n{space}", change).tune.space
    assert {key: (domain.kind, domain.ends) for key, domain in found.items()} == {
        "optimizer.lr": ("uniform", [2, 3]),
        "train.epochs": ("choice", [1, 2]),
    }


def test_trials_run_where_the_jobs_workers_do_unless_there_are_pools(read: Read) -> None:
    workers = ["workers.device=cpu", "workers.cpus=2"]
    assert read(SPACE, *workers).tune.pools == [Pool(device="cpu", cpus=2)]
    assert read(SPACE, *workers, "tune.pools=[{cpus: 3}]").tune.pools == [Pool(cpus=3)]
    assert read(SPACE).tune.pools == [Pool()]
    two = "architectures: [lenet, {name: b, model: lenet, workers.device: cuda}]\n"
    with pytest.raises(
        SpecError, match=":7: architectures: b has other workers.device .*tune.pools"
    ):
        read(two + SPACE)
    assert read(two + SPACE, "tune.pools=[{cpus: 3}]").tune.pools == [Pool(cpus=3)]


PBT = "tune: {{scheduler: {}, space: {}}}\n"
TUNE = "tune: {{space: {{optimizer.lr: {}}}}}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "tune: is missing"),
        (TUNE.format("{uniform: [1, 0.1]}"), ":7: tune.space.optimizer.lr: uniform [1.0, 0.1]: the first must be the smaller"),
        (TUNE.format("{randint: [3, 3]}"), ":7: tune.space.optimizer.lr: randint [3, 3]: the first"),
        (TUNE.format("{loguniform: [0, 1]}"), ":7: tune.space.optimizer.lr: loguniform [0.0, 1.0]: both must be greater than 0"),
        (TUNE.format("{choice: []}"), ":7: tune.space.optimizer.lr.choice: "),
        (TUNE.format("{uniform: [1]}"), ":7: tune.space.optimizer.lr.uniform: "),
        (TUNE.format("{randint: [1.5, 2]}"), ":7: tune.space.optimizer.lr.randint.0: "),
        (TUNE.format("{grid: [1], choice: [1]}"), "must be exactly one of choice, grid"),
        (TUNE.format("{}"), "must be exactly one of choice, grid"),
        (TUNE.format("{choice: [1, 2, 1]}"), ":7: tune.space.optimizer.lr: choice: 1 is listed twice"),
        ("tune: {folds: 1}\n", ":7: tune.folds: "),
        (TUNE.format("{range: [1, 2]}"), "unknown key 'range'"),
        (TUNE.format("0.1"), ":7: tune.space.optimizer.lr: must be a mapping, not 0.1"),
        ("tune: {trails: 3}\n", ":7: tune.trails: unknown key 'trails'; did you mean 'trials'?"),
        ("tune: {trials: 0}\n", ":7: tune.trials: must be greater than 0"),
        ("tune: {metric: val/acc}\n", ":7: tune.metric: must be 'val/acc1'"),
        ("tune: {pools: []}\n", ":7: tune.pools: "),
        ("tune: {pools: [{device: tpu}]}\n", ":7: tune.pools.0.device: must be 'auto'"),
        ("tune: {pools: [{gpus: 1}]}\n", ":7: tune.pools.0.gpus: unknown key 'gpus'; did you mean 'cpus'? (keys: cpus, device, workers)"),
        ("tune: {searcher: optuna, space: {optimizer.lr: {grid: [1]}}}\n", "tune.searcher optuna"),
        ("architectures: [lenet, lenet]\ntune: {}\n", "two architectures are called 'lenet'"),
        ("architectures: []\ntune: {}\n", ":7: architectures: "),
        ("architectures: [none.yaml]\ntune: {}\n", ":7: architectures.0.job: there is no none.yaml beside this file"),
        ("architectures: [../a.yaml]\ntune: {}\n", "there is no ../a.yaml beside this file, or below it"),
        ("architectures:\n  - lenet\n  - {name: b, model: lenet, train: {epochs: 0}}\ntune: {}\n", ":9: train.epochs: must be greater than 0"),
    ],
)  # fmt: skip
def test_a_wrong_search_is_refused_with_its_line(read: Read, text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        read(text)
    assert said in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TUNE.format("{uniform: [-1, 1]}"), ":7: tune.space.optimizer.lr: -1.0 gives an invalid job of lenet: optimizer.lr: must be greater than 0"),
        ("tune: {trials: 2}\n", ":7: tune.space: "),
        ("tune: {space: {optimizer.lrr: {choice: [1]}}}\n", "unknown sgd option 'lrr'; did you mean 'lr'?"),
        ("tune: {space: {train.epoch: {choice: [1]}}}\n", ":7: tune.space.train.epoch: 1 gives an invalid job of lenet: train.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
        ("tune: {space: {train.epochs: {randint: [0, 3]}}}\n", ":7: tune.space.train.epochs: 0 gives an invalid job"),
        ("tune: {space: {train.epochs: {uniform: [1, 3.5]}}}\n", "must be a valid integer"),
        ("tune: {space: {model: {choice: [lenet, lenett]}}}\n", "unknown model 'lenett'"),
        ("tune: {space: {seed: {choice: [1, 2]}}}\n", ":7: tune.space.seed: trials that differ in it cannot be compared"),
        ("tune: {space: {data.val: {choice: [0.1, 0.2]}}}\n", "cannot be compared"),
        ("tune: {space: {data: {choice: [mnist]}}}\n", "cannot be compared"),
        ("tune: {space: {workers.cpus: {choice: [1]}}}\n", "cannot be compared"),
        ("tune: {space: {data.fold: {choice: [[0, 2], [1, 2]]}}}\n", ":7: tune.space.data.fold: "),
        ("tune: {folds: 3, scheduler: asha}\n", ":7: tune.folds: "),
        ("tune: {folds: 3, metric: train/loss}\n", ":7: tune.folds: "),
        ("tune: {scheduler: ashaa}\n", ":7: tune.scheduler.name: unknown scheduler 'ashaa'; did you mean 'asha'?"),
        ("tune: {scheduler: pbtt}\n", "did you mean 'pbt'? (schedulers: asha, median, none, pbt)"),
        ("tune: {scheduler: pbt}\n", ":7: tune.scheduler.interval: is missing"),
        (PBT.format("{name: pbt, interval: 1, quantile: 0.6}", "{optimizer.lr: {choice: [1, 2]}}"), ":7: tune.scheduler.quantile: must be less than or equal to 0.5"),
        (PBT.format("{name: pbt, interval: 3}", "{optimizer.lr: {choice: [1, 2]}}"), ":7: tune.scheduler.interval: must be less than the 3 epochs of lenet"),
        (PBT.format("{name: pbt, interval: 1}", "{train.epochs: {choice: [2, 3]}}"), ":7: tune.space.train.epochs: pbt changes settings during a run: options of the optimizer, "),
        (PBT.format("{name: pbt, interval: 1}", "{optimizer: {choice: [sgd]}}"), ":7: tune.space.optimizer: pbt changes"),
        ("tune: {trials: 4, scheduler: {name: pbt, interval: 1}}\n", ":7: tune.space: "),
        (PBT.format("{name: pbt, interval: 1}", "{optimizer.lr: {grid: [0.1]}}"), ":7: tune.trials: pbt needs 2 or more trials of lenet"),
        (PBT.format("{name: pbt, interval: 1}, searcher: optuna", "{optimizer.lr: {choice: [1, 2]}}"), ":7: tune.searcher: "),
        ("stages: [{epoch: 1, changes: {optimizer.lr: 1}}]\n" + PBT.format("{name: pbt, interval: 1}", "{optimizer.lr: {choice: [1, 2]}}"), ":7: stages: lenet"),
        ("tune: {scheduler: {name: asha, grace: 0}}\n", ":7: tune.scheduler.grace: must be greater than 0"),
        ("workers: {count: 2}\ntune: {}\n", ":7: workers.count: lenet asks for 2: tune.pools says how many a trial has"),
        ("workers: {count: [1, 2]}\ntune: {}\n", ":7: workers.count: lenet asks for 1 to 2: tune.pools"),
        ("tune: {pools: [{workers: [1, 2]}]}\n", "tune.pools.0.workers: must be a valid integer, not [1, 2]"),
        ("architectures: [lenet, {name: b, model: lenet, data.val: 0.2}]\ntune: {}\n", ":7: architectures: b has other data than lenet"),
        ("architectures: [lenett]\ntune: {}\n", "unknown model 'lenett'; did you mean 'lenet'?"),
    ],
)  # fmt: skip
def test_what_makes_no_job_is_refused_before_anything_starts(
    read: Read, text: str, said: str
) -> None:
    with pytest.raises(SpecError) as caught:
        check_search(read(text))
    assert said in str(caught.value) and caught.value.exit_code == 2


def test_a_metric_on_held_out_images_needs_some(read: Read) -> None:
    with pytest.raises(SpecError, match="data.val: 0 .*val/acc1"):
        check_search(read(SPACE, "data.val=0"))
    check_search(read(SPACE, "data.val=0", "tune.metric=train/loss"))


def test_paths_in_the_space_do_not_depend_on_the_working_folder(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials are trained in other processes, and resumed from other folders."""
    run = train(read().architectures[0].job.change({"train.epochs": 1}))
    weights = run.weights("last") / "model.safetensors"
    monkeypatch.chdir(run.folder.parent)
    relative = weights.relative_to(run.folder.parent)
    checked = check_search(
        read(
            f"tune: {{space: {{model.weights: {{choice: [null, {relative}]}}, "
            "train.distillation.teacher: {grid: [tiny]}}}\n",
            "train.distillation={teacher: tiny}",
        )
    )
    space = checked.architectures[0].space
    assert space["model.weights"].ends == [None, str(weights)]
    assert space["train.distillation.teacher"].ends == [str(run.folder)]
    checked = check_search(
        read(
            f"tune: {{space: {{model: {{choice: [lenet, {{name: lenet, weights: {relative}}}]}}, "
            "train.distillation: {grid: [null, {teacher: tiny}]}}}\n"
        )
    )
    space = checked.architectures[0].space
    alone, initialized = space["model"].ends
    assert alone == "lenet" and initialized["weights"] == str(weights)
    without, taught = space["train.distillation"].ends
    assert without is None and taught["teacher"] == str(run.folder)
    with pytest.raises(SpecError, match="tiny.tune.yaml:7: tune.space.train.distillation: .*tinny"):
        check_search(
            read("tune: {space: {train.distillation: {grid: [null, {teacher: tinny}]}}}\n")
        )


def test_two_names_of_one_file_in_the_space_are_refused(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(read().architectures[0].job.change({"train.epochs": 1}))
    monkeypatch.chdir(run.weights("last"))
    names = "[model.safetensors, ./model.safetensors]"
    with pytest.raises(SpecError, match=r":7: tune.space.model.weights: .*is listed twice"):
        check_search(read(f"tune: {{space: {{model.weights: {{choice: {names}}}}}}}\n"))


def test_a_value_of_the_space_is_completed_by_the_other_values_and_not_by_the_job(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(read().architectures[0].job.change({"train.epochs": 1}))
    monkeypatch.chdir(run.weights("last"))
    checked = check_search(
        read(
            "tune: {space: {train.epochs: {grid: [1, 2]}, "
            "train: {grid: [{ema: 0.9}, {ema: 0.99}]}}}\n",
            "model.weights=model.safetensors",
        )
    )
    (architecture,) = checked.architectures
    assert architecture.job.model.weights == str(Path("model.safetensors").absolute())
    assert architecture.space["train"].ends == [{"ema": 0.9}, {"ema": 0.99}]


def test_architectures_of_the_command_line_replace_those_of_the_file(read: Read) -> None:
    both = "architectures: [lenet, {name: deep, model: alexnet}]\n" + SPACE
    (only,) = read(both, "architectures=[lenet]").architectures
    assert only.name == "lenet"
    with pytest.raises(SpecError, match="command line: model.name: unknown model 'lenett'"):
        check_search(read(both, "architectures=[lenett]"))
    with pytest.raises(SpecError, match=":7: extends: can only be set at the top of a file"):
        read("architectures: [{name: two, extends: quickstart}]\n" + SPACE)


def test_a_bad_value_of_an_architectures_own_space_is_found_there(read: Read) -> None:
    own = (
        "architectures:\n"
        "  - name: lenet\n"
        "    space: {optimizer.momentum: {choice: [0.9, 2]}}\n" + SPACE
    )
    said = ":9: architectures.0.space.optimizer.momentum: 2 gives an invalid job of lenet"
    with pytest.raises(SpecError, match=said):
        check_search(read(own))


def test_what_nobody_would_read_is_refused(read: Read, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(BASE)
    with pytest.raises(SpecError, match="data: "):
        read("architectures: [other.yaml]\n" + SPACE)


def test_more_of_an_accuracy_and_less_of_a_loss_is_better(read: Read) -> None:
    assert read().tune.sign == 1
    assert read("tune: {metric: val/loss}\n").tune.sign == -1
    assert read("tune: {metric: val/loss, mode: max}\n").tune.sign == 1


def test_a_trials_job_says_on_what_it_ran(read: Read) -> None:
    (architecture,) = read(SPACE, "workers.address=head:6379").architectures
    job = architecture.job_of("tiny", {"optimizer.lr": 0.5}, Pool(device="cpu", cpus=2))
    assert (job.name, job.optimizer.options["lr"]) == ("tiny-lenet", 0.5)
    assert (job.workers.device, job.workers.cpus, job.workers.address) == ("cpu", 2, None)
