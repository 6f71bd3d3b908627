"""`raycnn stop`."""

from raycnn.cli.arguments import Address, JobId


def stop(job: JobId, address: Address = None) -> None:
    """Save the state of a submitted job and stop it; after two minutes it is killed."""
    from raycnn.cli.remote import find_job, reach

    cluster = reach(address)
    found = find_job(cluster, job)
    job, status = found.submission_id or job, found.status
    if status.is_terminal():
        print(f"{job} has ended: {status.value}")
        return
    cluster.stop(job)
    print(f"{job}: saving, then stopping", flush=True)
    status = cluster.follow(job, lambda text: None).status
    print(f"{job} {status.value}")
    if status.value == "STOPPED":
        print(f"next: raycnn submit --resume {job}")
