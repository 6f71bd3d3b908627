"""The command `raycnn stop`: save and stop a submitted job."""

from raycnn.cli.arguments import Address, JobId


def stop(job: JobId, address: Address = None) -> None:
    """Save the state of a submitted job and stop it; after two minutes it is killed."""
    from raycnn.cli.remote import connect

    cluster = connect(address)
    details = cluster.find(job)
    job = details.submission_id
    if details.ended:
        print(f"{job} has ended: {details.status}")
        return
    cluster.stop(job)
    print(f"{job}: saving, then stopping", flush=True)
    status = cluster.follow(job, lambda text: None).status
    print(f"{job} {status}")
    if status == "STOPPED":
        print(f"next: raycnn submit --resume {job}")
