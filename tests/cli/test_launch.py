"""`dit-video launch`: what it writes is what the released JobSet takes, scripts that shellcheck passes, and the right
number of everything."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sysconfig
import textwrap
from pathlib import Path

import jsonschema
import pytest
import yaml

from dit_video.cli.main import main

IMAGE = "eu-docker.pkg.dev/team/images/dit_video:1"
GKE = ["--target", "gke", "--image", IMAGE, "--workdir", "gs://bucket/some/runs"]
CLOUD = ["--target", "queued-resources", "--image", IMAGE, "--workdir", "gs://bucket/runs", "--zone", "us-east5-a"]
SLURM = ["--target", "slurm", "--workdir", "/shared/my runs"]


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """A file with an experiment that names its slice: 64 chips of v6e."""
    monkeypatch.chdir(tmp_path)
    text = '''
        """Wants a large machine.

            dit-video plan wide_model.py --topology v6e:8x8
        """
        from dataclasses import replace

        from dit_video.core.config import load_experiment
        from dit_video.core.mesh import MeshShape

        EXPERIMENT = replace(load_experiment("toyworld"), batch=64, mesh=MeshShape(data=-1, fsdp=4))
        '''
    (tmp_path / "wide_model.py").write_text(textwrap.dedent(text).lstrip())
    return "wide_model.py"


@pytest.fixture
def launch(capsys):
    """`launch(...)`: what stands on stdout; the command must end well."""

    def launch(*argv):
        assert main(["launch", *argv]) == 0
        return capsys.readouterr().out

    return launch


def strict(schema):
    """A structural schema as the API server holds to it: fields that it does not name are refused."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        out.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return out


@pytest.fixture(scope="module")
def released(checkout):
    """Validates against the custom-resource definition of JobSet v0.12.0 (tools/jobset_schema.py)."""
    golden = json.loads(gzip.decompress((checkout / "tests" / "goldens" / "jobset.json.gz").read_bytes()))
    assert (golden["version"], golden["api"]) == ("v0.12.0", "v1alpha2")
    validator = jsonschema.Draft202012Validator(strict(golden["schema"]))

    def check(manifest):
        errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]
        assert not errors

    return check


def pod(manifest):
    (job,) = manifest["spec"]["replicatedJobs"]
    return job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    "topology, more, hosts, chips, accelerator",
    [
        ("v5e:4x4", [], 4, 4, "tpu-v5-lite-podslice"),
        ("v6e:8x8", ["--spot", "--queue", "team", "--service_account", "runner"], 16, 4, "tpu-v6e-slice"),
        ("v6e:2x4", ["--slices", "2"], 1, 8, "tpu-v6e-slice"),
        ("v5p:2x4x4", ["--reservation", "ours", "--mount", "gs://clips:/data"], 8, 4, "tpu-v5p-slice"),
        ("tpu7x:2x2x2", ["--max_restarts", "3"], 2, 4, "tpu7x"),
    ],
)
def test_a_jobset_of_every_kind(launch, released, topology, more, hosts, chips, accelerator):
    text = launch("toyworld", *GKE, "--topology", topology, "--batch", "64", *more)
    manifest = yaml.safe_load(text)
    released(manifest)
    job, spec = pod(manifest)
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (hosts, hosts, 0)
    selector = spec["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert selector["cloud.google.com/gke-tpu-topology"] == topology.partition(":")[2]
    (container,) = spec["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert container["image"] == IMAGE
    run = "/mnt/runs/some/runs/toyworld"
    assert container["command"] == [
        "dit-video",
        "train",
        "toyworld",
        "--workdir",
        run,
        "--device",
        "tpu",
        "--batch",
        "64",
    ]
    assert [mount["mountPath"] for mount in container["volumeMounts"]][2] == "/mnt/runs"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}


def test_what_a_jobset_is_told_beside_the_machine(launch):
    more = ["--slices", "2", "--spot", "--queue", "team", "--reservation", "ours", "--mount", "gs://clips:/data"]
    manifest = yaml.safe_load(launch("toyworld", *GKE, "--topology", "v5e:2x4", *more))
    job, spec = pod(manifest)
    assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == 2
    assert spec["hostNetwork"] is True
    assert spec["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert spec["nodeSelector"]["cloud.google.com/reservation-name"] == "ours"
    volume = spec["volumes"][-1]["csi"]["volumeAttributes"]
    assert (volume["bucketName"], volume["hostNetworkPodKSA"]) == ("clips", "true")
    # Bad input, what is missing, too little memory and numbers that are not finite end it; all else starts again.
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 50
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2, 3, 4, 5]
    plain = yaml.safe_load(launch("toyworld", *GKE, "--topology", "v5e:2x4"))
    assert "labels" not in plain["metadata"]
    assert "hostNetwork" not in pod(plain)[1]


def test_the_schema_is_held_to(released, launch):
    manifest = yaml.safe_load(launch("toyworld", *GKE, "--topology", "v5e:2x4"))
    for change in ({"paralelism": 4}, {"parallelism": "four"}, {"podFailurePolicy": {}}):
        job, _ = pod(wrong := json.loads(json.dumps(manifest)))
        job.update(change)
        with pytest.raises(AssertionError):
            released(wrong)


def test_the_docstring_names_the_slice(launch, experiment):
    report = json.loads(launch(experiment, *GKE, "--json", "--name", "wide"))
    assert (report["topology"], report["chips"], report["hosts"], report["devices"]) == ("v6e:8x8", 64, 16, 64)
    assert yaml.safe_load(report["text"])["metadata"]["name"] == "wide"


SCRIPTS = [
    ["toyworld", *CLOUD, "--topology", "v5e:4x4", "--spot", "--project", "p", "--mount", "gs://clips:/data"],
    ["toyworld", *CLOUD, "--topology", "v5p:4x8x8", "--reservation", "ours", "--batch", "256"],
    ["toyworld", *SLURM, "--nodes", "2", "--time", "24:00:00", "--partition", "gpu", "--account", "team"],
    [
        "finetune_folder",
        *SLURM,
        "--image",
        "it's.sif",
        "--mount",
        "/clips:/data",
        "--data.path",
        "a 'folder' of $clips",
    ],
]


@pytest.mark.parametrize("argv", SCRIPTS, ids=lambda argv: " ".join(argv[2:6]))
def test_scripts_are_sound(launch, tmp_path, argv):
    script = tmp_path / "launch.sh"
    launch(*argv, "--output", str(script))
    assert "@{" not in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
    # The extra `test` brings shellcheck: it lies beside the interpreter, entered or not.
    shellcheck = shutil.which("shellcheck", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    # SC2016 asks whether a `$` in quotes is meant: in a user's value it is.
    done = subprocess.run([shellcheck, "--exclude=SC2016", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_is_asked_of_cloud_tpu(launch):
    text = launch(*SCRIPTS[0])
    for line in ("--accelerator-type=v5litepod-16", "  --spot", "--runtime-version=v2-alpha-tpuv5-lite"):
        assert line in text
    assert "mount_bucket clips /mnt/data" in text
    assert "--volume /mnt/data:/data" in text
    assert "outcome=gs://bucket/runs/toyworld/exit_code" in text
    assert "gcloud auth configure-docker eu-docker.pkg.dev" in text
    text = launch(*SCRIPTS[1])
    assert "--type=v5p\n  --topology=4x8x8\n  --reservation=ours" in text
    assert "--accelerator-type" not in text
    assert "--spot" not in text.partition("set -euo")[2]


def fake(folder, name, text):
    program = folder / name
    program.write_text(f"#!/usr/bin/env bash\n{text}\n")
    program.chmod(0o755)


def test_the_slurm_file_runs(launch, tmp_path, monkeypatch):
    """With stand-ins for Slurm's programs: one process a node, the rendezvous, and what is started again."""
    fake(tmp_path, "scontrol", 'if [[ $1 == show ]]; then printf "node7\\nnode8\\n"; else echo "$@" >>requeued; fi')
    fake(tmp_path, "srun", 'shift; echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $*" >ran; exit "$CODE"')
    script = tmp_path / "job.sh"
    launch("toyworld", *SLURM, "--nodes", "2", "--max_restarts", "1", "--output", str(script))
    slurm = {"SLURM_JOB_ID": "20007", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"

    def start(code, restarts):
        env = os.environ | slurm | {"PATH": path, "CODE": str(code), "SLURM_RESTART_COUNT": str(restarts)}
        assert subprocess.run(["bash", str(script)], cwd=tmp_path, env=env).returncode == code
        again = (tmp_path / "requeued").exists()
        (tmp_path / "requeued").unlink(missing_ok=True)
        return again

    again = {code: start(code, 0) for code in (0, 2, 3, 4, 5, 75, 124, 134)}
    assert [code for code, yes in again.items() if yes] == [75, 124, 134]
    assert not start(75, 1), "restarts are counted"
    words = (tmp_path / "ran").read_text()
    assert words == "node7:20007 2 dit-video train toyworld --workdir /shared/my runs/toyworld --device gpu\n"


@pytest.mark.parametrize("argv", [GKE, CLOUD, SLURM], ids=["gke", "queued-resources", "slurm"])
def test_how_long_hosts_wait_for_each_other(launch, argv):
    """A flag of train, not a field of the experiment."""
    where = [] if argv is SLURM else ["--topology", "v5e:4x4"]
    text = launch("toyworld", *argv, *where, "--wait", "900")
    assert re.search(r"--wait\W+900\b", text.partition("set -euo")[2] or text.partition("apiVersion")[2])


def cloud_script(launch, folder, gcloud):
    """The script for Cloud TPU, run in a folder with a stand-in for gcloud and without pauses; what came of it."""
    fake(folder, "gcloud", textwrap.dedent(gcloud))
    fake(folder, "sleep", ":")
    script = folder / "launch.sh"
    launch("toyworld", *CLOUD, "--topology", "v6e:4x4", "--output", str(script))
    env = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(["bash", str(script)], cwd=folder, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("code", [0, 2, 3, 4, 5])
def test_the_cloud_script_asks_again_after_a_preemption(launch, tmp_path, code):
    """With a stand-in for gcloud: the first slice is taken away and cannot be deleted at once; on the second the run
    ends, well or without hope."""
    gcloud = """
        case "$*" in
          *"resources create"*) echo x >>asked; echo ACTIVE >state ;;
          *"resources describe"*) cat state ;;
          *"resources delete"*) if [[ -f tried ]]; then echo GONE >state; else touch tried; exit 1; fi ;;
          *"tpu-vm ssh"*) if [[ $(wc -l <asked) == 2 ]]; then echo CODE >code; else echo SUSPENDED >state; fi ;;
          *"storage cat"*) cat code ;;
          *"storage rm"*) rm -f code ;;
        esac
        """
    done = cloud_script(launch, tmp_path, gcloud.replace("CODE", str(code)))
    assert done.returncode == code, done.stderr
    assert (tmp_path / "asked").read_text() == "x\nx\n"
    assert "the slice was taken away" in done.stderr
    assert (tmp_path / "state").read_text() == "GONE\n", "nothing is left that costs money"


@pytest.mark.parametrize("blind, told", [("no network", 1), ("NOT_FOUND: no such request", 2)])
def test_a_question_that_fails_takes_no_slice_away(launch, tmp_path, blind, told):
    """With a stand-in for gcloud that does not answer once, after the run began: only NOT_FOUND means gone."""
    gcloud = """
        case "$*" in
          *"resources create"*) echo x >>asked; echo ACTIVE >state ;;
          *"resources describe"*) if [[ -f blind ]]; then rm blind; echo "BLIND" >&2; exit 1; fi; cat state ;;
          *"resources delete"*) echo GONE >state ;;
          *"tpu-vm ssh"*) if [[ -f ran ]]; then echo 0 >code; else touch ran blind; fi ;;
          *"storage cat"*) cat code ;;
        esac
        """
    done = cloud_script(launch, tmp_path, gcloud.replace("BLIND", blind))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text() == "x\n" * told


def test_what_never_starts_does_not_keep_a_slice(launch, tmp_path):
    """With a stand-in for gcloud whose ssh fails, as for an image that is not there: another slice, then the end."""
    gcloud = """
        case "$*" in
          *"resources create"*) echo x >>asked; echo ACTIVE >state ;;
          *"resources describe"*) cat state ;;
          *"resources delete"*) echo GONE >state ;;
          *"tpu-vm ssh"*) echo x >>tried; if [[ $(wc -l <tried) -gt 99 ]]; then echo 0 >code; fi; exit 1 ;;
          *"storage cat"*) cat code ;;
        esac
        """
    done = cloud_script(launch, tmp_path, gcloud)
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "tried").read_text() == "x\n" * 40 and (tmp_path / "asked").read_text() == "x\n" * 2
    assert "check the image, the rights to it and to the bucket" in done.stderr
    assert (tmp_path / "state").read_text() == "GONE\n", "nothing is left that costs money"


def test_what_could_not_start_is_not_launched(launch, capsys):
    for argv, words in (
        (["wan_1_3b_lora_v6e_1", *GKE], "--init MODEL, as the machines see it"),
        (["toyworld", *GKE, "--topology", "v5e:4x4", "--slices", "2", "--mesh.data", "1", "--mesh.fsdp", "-1"],
         "mesh.data=1 does not divide"),
    ):  # fmt: skip
        assert main(["launch", *argv]) == 2
        assert words in capsys.readouterr().err


def test_clips_that_the_machines_see_need_not_be_here(launch):
    """As for train, --data names a folder; here nobody looks into it."""
    text = launch("toyworld", *SLURM, "--data", "/shared/latents", "--batch", "16")
    assert "--data /shared/latents --batch 16" in text


def test_the_dtype_goes_to_train(launch, capsys):
    assert "--device gpu --dtype bfloat16 --batch 16" in launch(
        "toyworld", *SLURM, "--dtype", "bfloat16", "--batch", "16"
    )
    assert "--dtype" not in launch("toyworld", *SLURM, "--batch", "16")
    assert main(["launch", "lora_folder", *SLURM, "--init", "x", "--dtype", "bfloat16"]) == 2
    assert "--matmul_precision" in capsys.readouterr().err


def test_only_what_launch_wrote_is_replaced(launch, tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    mine.write_text("kind: Deployment\n")
    argv = ["toyworld", *GKE, "--topology", "v5e:4x4", "--output"]
    assert main(["launch", *argv, str(mine)]) == 2
    assert "launch did not write it. Choose another name" in capsys.readouterr().err
    assert mine.read_text() == "kind: Deployment\n"
    assert main(["launch", *argv, str(tmp_path)]) == 2
    for slices in ("1", "2"):
        launch(*argv, str(tmp_path / "job.yaml"), "--slices", slices)
    assert "# 2 x v5e:4x4" in (tmp_path / "job.yaml").read_text()


def test_submit_hands_it_over(launch, tmp_path, monkeypatch):
    fake(tmp_path, "kubectl", f'echo "$@" >{tmp_path}/asked; cat >{tmp_path}/manifest')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    text = launch("toyworld", *GKE, "--topology", "v5e:4x4", "--submit")
    assert (tmp_path / "asked").read_text() == "apply -f -\n"
    assert (tmp_path / "manifest").read_text() == text


@pytest.mark.parametrize(
    "argv, code, message",
    [
        ([*GKE], 2, "names no TPU in its docstring"),
        ([*GKE[:2], *GKE[4:], "--topology", "v5e:4x4"], 2, "wants --image"),
        ([*CLOUD[:-2], "--topology", "v5e:4x4"], 2, "wants --zone"),
        ([*CLOUD, "--topology", "tpu7x:2x2x2"], 2, "only GKE does"),
        ([*CLOUD, "--topology", "v5e:4x4", "--slices", "2"], 2, "--slices is for --target gke; queued-resources has"),
        ([*GKE, "--topology", "v5e:8x8"], 2, "batch=32 does not divide"),
        ([*GKE, "--topology", "v5e:4x4", "--mesh.fsdp", "3"], 2, "do not divide by 3"),
        ([*GKE, "--topology", "v5e:3x3"], 2, "no such slice"),
        ([*GKE[:-1], "/shared", "--topology", "v5e:4x4"], 2, "Give a bucket"),
        ([*GKE, "--topology", "v5e:4x4", "--name", "Not_A_Name"], 2, "small letters"),
        ([*GKE, "--topology", "v5e:4x4", "--mount", "gs://data:data"], 2, "give SOURCE:PATH"),
        ([*GKE, "--topology", "v5e:4x4", "--mount", "gs://data/clips:/in"], 2, "Give gs://data:/in, and what the run"),
        ([*GKE, "--topology", "v5e:4x4", "--stepz", "5"], 2, "Did you mean steps"),
        ([*SLURM[:-1], "gs://bucket/runs"], 2, "all nodes share"),
        ([*SLURM, "--mount", "/a:/b"], 2, "goes with --image"),
        ([*SLURM, "--nodes", "0"], 2, "at least 1"),
        ([*SLURM, "--wait", "0"], 2, "--wait 0: seconds, more than 0"),
        ([*SLURM, "--topology", "v5e:4x4"], 2, "--topology is for --target gke and queued-resources"),
        ([*GKE, "--topology", "v5e:4x4", "--time", "24:00:00"], 2, "--time is for --target slurm"),
        ([*GKE, "--topology", "v5e:4x4", "--keep", "1"], 2, "keep=1: at least 2"),
        (["--target", "ray", "--workdir", "x"], 2, "invalid choice"),
        ([*SLURM, "--submit"], 3, "sbatch is not on this machine"),
    ],
)
def test_bad_input_is_found_before_anything_is_paid_for(capsys, monkeypatch, argv, code, message):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    assert main(["launch", "toyworld", *argv]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_an_experiment_that_was_edited(tmp_path, capsys):
    """In the image a path that is not there is the carried file of that name: another training."""
    from dit_video.core.config import packaged_experiments

    copy = tmp_path / "toyworld.py"
    copy.write_text(packaged_experiments()["toyworld"].read_text())
    argv = ["launch", str(copy), *GKE, "--topology", "v5e:4x4"]
    assert main(argv) == 0 and "that the package carries" not in capsys.readouterr().err
    copy.write_text(copy.read_text().replace("batch=32", "batch=64"))
    assert main(argv) == 0 and "is not the toyworld that the package carries" in capsys.readouterr().err


def test_templates_are_carried_by_the_package():
    from importlib.resources import files

    from dit_video.cli.launch import TARGETS

    folder = files("dit_video.cli") / "templates"
    assert {Path(str(file)).name for file in folder.iterdir()} == {name + suffix for name, suffix in TARGETS.items()}
