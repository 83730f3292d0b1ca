use super::*;
use clap::CommandFactory;

fn parse(words: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(words.split_whitespace())
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn global_options_stand_anywhere() {
    for words in ["dog -s /d -o json node list", "dog node list -s /d -o json", "dog node -o json list -s /d"]
    {
        let cli = parse(words).unwrap();
        assert_eq!((cli.target.server.as_deref(), cli.output), (Some("/d"), Format::Json), "{words}");
        assert!(matches!(cli.command, Command::Node(NodeCommand::List)));
    }
}

#[test]
fn words_and_sizes_are_understood() {
    let Command::Vdi(VdiCommand::Create(create)) =
        parse("dog vdi create disk 10G --copies 2 -a os=linux").unwrap().command
    else {
        panic!()
    };
    assert_eq!((create.name.as_str(), create.size, create.copies), ("disk", Size(10 << 30), Some(2)));
    assert_eq!(create.attributes, [("os".to_owned(), "linux".to_owned())]);
    let Command::Vdi(VdiCommand::Read { offset, length, file, .. }) =
        parse("dog vdi read disk 1M 4K -f out").unwrap().command
    else {
        panic!()
    };
    assert_eq!((offset, length, file), (Size(1 << 20), Some(Size(4096)), Some(PathBuf::from("out"))));
    for words in [
        "dog vdi list",
        "dog vdi info disk",
        "dog vdi delete disk",
        "dog vdi resize disk 20G",
        "dog vdi resize disk 1TiB --shrink",
        "dog vdi read disk",
        "dog vdi write disk 512",
        "dog vdi snapshot disk monday",
        "dog vdi snapshot disk monday -a why=backup",
        "dog vdi clone disk@monday copy",
        "dog vdi clone disk copy --size 20G --copies 2",
        "dog vdi rollback disk monday",
        "dog vdi flatten disk",
        "dog vdi flatten disk --cancel",
        "dog vdi alter-copy disk --copies 2 --min-copies 1",
        "dog vdi tree",
        "dog vdi lock list",
        "dog vdi lock revoke disk",
        "dog vdi lock revoke disk 17",
        "dog node info",
        "dog node info ab",
        "dog node kill ab",
        "dog node recovery --watch",
        "dog node remove ab --force",
        "dog node drain ab",
        "dog node drain ab --undo",
        "dog node reweight ab 12",
        "dog node reweight ab auto",
        "dog cluster info",
        "dog cluster check",
        "dog cluster check --copies",
        "dog vdi check disk",
        "dog vdi accept-loss disk --all --yes",
        "dog vdi accept-loss disk --object 3 --object 4 --yes --force --force",
        "dog cluster format --copies 1",
        "dog cluster scrub",
        "dog cluster scrub start --wait",
        "dog node scrub ab pause",
        "dog cluster shutdown",
        "dog cluster recovery",
        "dog cluster recovery pause",
        "dog cluster settings --recovery-rate 100M",
        "dog cluster settings --copies 2 --automatic-out false",
    ] {
        assert!(parse(words).is_ok(), "{words}");
    }
}

#[test]
fn wrong_words_are_usage_errors() {
    for words in [
        "dog",
        "dog node",
        "dog node kill",
        "dog node reweight ab much",
        "dog vdi create disk",
        "dog vdi create disk big",
        "dog vdi create disk 1G --copies 0",
        "dog vdi create disk 1G --copies 17",
        "dog vdi create disk 1G -a novalue",
        "dog vdi lock",
        "dog vdi snapshot",
        "dog vdi clone disk",
        "dog vdi rollback disk",
        "dog vdi flatten disk --cancel --detach",
        "dog vdi alter-copy disk",
        "dog vdi accept-loss disk --yes",
        "dog cluster settings --automatic-out maybe",
        "dog -o yaml node list",
        "dog frobnicate",
    ] {
        let error = parse(words).expect_err(words);
        assert_eq!(error.exit_code(), 2, "{words}");
    }
}
