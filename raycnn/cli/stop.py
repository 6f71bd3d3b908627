"""The command `raycnn stop`: save and stop a submitted job."""

from raycnn.cli.arguments import Address, JobId


def stop(job: JobId, address: Address = None) -> None:
    """Save the state of a submitted job and stop it; after two minutes it is killed."""
    from raycnn.cli.remote import connect, find_job

    cluster = connect(address)
    details = find_job(cluster, job)
    job, status = details.submission_id or job, details.status
    if status.is_terminal():
        print(f"{job} has ended: {status.value}")
        return
    cluster.stop(job)
    print(f"{job}: saving, then stopping", flush=True)
    status = cluster.follow(job, lambda text: None).status
    print(f"{job} {status.value}")
    if status.value == "STOPPED":
        print(f"next: raycnn submit --resume {job}")
