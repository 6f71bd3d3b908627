"""`raycnn stop`."""

from raycnn.cli.arguments import Address, JobId


def stop(job: JobId, address: Address = None) -> None:
    """Have a submitted job save its state and stop; after two minutes it is ended anyway."""
    from raycnn.cli.remote import reach

    cluster = reach(address)
    status = cluster.job(job).status
    if status.is_terminal():
        print(f"{job} has ended: {status.value}")
        return
    cluster.stop(job)
    print(f"{job}: saving, then stopping", flush=True)
    status = cluster.follow(job, lambda text: None).status
    print(f"{job} {status.value}: `raycnn submit --resume {job}` goes on")
