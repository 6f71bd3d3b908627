from raycnn.cli import main

main()
