from ser_fast.cli import main

raise SystemExit(main())
