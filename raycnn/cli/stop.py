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
    further = f": `raycnn submit --resume {job}` goes on" if status.value == "STOPPED" else ""
    print(f"{job} {status.value}{further}")
