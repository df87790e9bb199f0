"""What several subcommands share: options, terminal output, audio output."""
