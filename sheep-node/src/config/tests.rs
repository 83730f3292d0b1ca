use super::*;
use crate::cli::{self, Invocation};
use proptest::prelude::*;

fn build(args: &[&str], env: &[(&str, &str)], file: &str) -> Result<Config, String> {
    let flags = cli::flags(args.iter().map(|arg| (*arg).to_owned())).map_err(|error| error.to_string())?;
    let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Config::build(flags, Layer::from_env(env)?, Layer::from_toml(file)?)
}

#[test]
fn a_directory_is_enough() {
    let config = build(&["--new", "/d"], &[], "").unwrap();
    assert!(config.new && !config.gateway);
    assert_eq!(config.dir, PathBuf::from("/d"));
    assert_eq!(config.grpc, "127.0.0.1:7002".parse().unwrap());
    assert_eq!(config.data_address(), "127.0.0.1:7000".parse().unwrap());
    assert_eq!(config.nbd_tcp, Some("127.0.0.1:10809".parse().unwrap()));
    assert_eq!(config.rendezvous, Some(PathBuf::from("/run/sheep")));
    let settings = &config.first.settings;
    assert_eq!((settings.copies, settings.min_copies, settings.lease_ms), (3, 2, 5_000));
    assert!(!config.name.is_empty());
}

#[test]
fn the_nearer_source_wins() {
    let file = "zone = \"file\"\nring_port = 1\nweight = 1\ntoken_loss_ms = 300\nseeds = [\"a\", \"b:1\"]";
    let env = [("SHEEP_ZONE", "env"), ("SHEEP_RING_PORT", "2"), ("SHEEP_SERVICE_HOST", "x"), ("HOME", "y")];
    let config = build(&["/d", "--zone", "flag"], &env, file).unwrap();
    assert_eq!((config.zone.as_str(), config.ring_port, config.weight), ("flag", 2, Some(1)));
    let sources = ["zone", "ring_port", "weight", "data_port"].map(|key| config.source(key));
    assert_eq!(sources, [Source::Flag, Source::Environment, Source::File, Source::Default]);
    assert_eq!(config.first.settings.lease_ms, 1_500);
    assert_eq!(config.seeds.iter().map(Seed::to_string).collect::<Vec<_>>(), ["a:7000", "b:1"]);
    assert!(config.may_move("grpc") && !config.may_move("ring_port"));
}

#[test]
fn every_form_of_a_value_is_taken() {
    let config = build(
        &["/d", "--seed", "10.0.0.1:7", "--seed", "[::1]:8,host", "--nbd-tcp", "none", "--capacity", "1.5G"],
        &[("SHEEP_GATEWAY", "false"), ("SHEEP_NBD_UNIX", "/n")],
        "log_format = \"json\"",
    )
    .unwrap();
    let seeds: Vec<String> = config.seeds.iter().map(Seed::to_string).collect();
    assert_eq!(seeds, ["10.0.0.1:7", "[::1]:8", "host:7000"]);
    assert_eq!(config.nbd_tcp, None);
    assert_eq!(config.nbd_unix, Some(PathBuf::from("/n")));
    assert_eq!(config.capacity, Some(3 << 29));
    assert_eq!(config.log_format, LogFormat::Json);
}

#[test]
fn what_cannot_work_is_said_in_words() {
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str, &'a str);
    let long = format!("/{}", "x".repeat(100));
    let table: &[Case<'_>] = &[
        (&[], &[], "", "no directory"),
        (&[&long], &[], "", "longer than 107"),
        (&["/d", "--node-listen", "0.0.0.0"], &[], "", "other nodes can reach"),
        (&["/d", "--grpc", "127.0.0.1:7003"], &[], "", "http and grpc both want"),
        (&["/d", "--grpc", "0.0.0.0:7000"], &[], "", "grpc and data_port both want"),
        (&["/d", "--token-loss-ms", "5"], &[], "", "token_loss_ms of 5"),
        (&["--new", "/d", "--copies", "17"], &[], "", "setting copies must be 1 to 16"),
        (&["--new", "/d", "--copies", "2", "--min-copies", "3"], &[], "", "min_copies"),
        (&["--new", "/d", "--object-size", "3M"], &[], "", "power of two"),
        (&["--new", "/d", "--object-size", "8G"], &[], "", "power of two"),
        (&["/d", "--copies", "2"], &[], "", "dog cluster settings"),
        (&["--new", "--gateway", "/d"], &[], "", "first node"),
        (&["--gateway", "/d", "--weight", "2"], &[], "", "no meaning for a gateway"),
        (&["/d", "--weight", "0"], &[], "", "weight must be"),
        (&["/d", "--capacity", "1M"], &[], "", "at least 64 MiB"),
        (&["/d", "--shards", "0"], &[], "", "shards must be"),
        (&["/d", "--zone", "a\nb"], &[], "", "printable"),
        (&["/d", "--name", ""], &[], "", "name \"\""),
        (&["/d"], &[("SHEEP_RING_PORT", "x")], "", "SHEEP_RING_PORT: \"x\""),
        (&["/d"], &[], "rign_port = 3", "rign_port"),
        (&["/d"], &[], "ring_port = 70000", "70000"),
        (&["/d"], &[], "new = true", "--new once"),
        (&["/d"], &[("SHEEP_RENDEZVOUS", "")], "", "rendezvous is empty"),
        (&["/d"], &[("SHEEP_TLS_CA", "/ca"), ("SHEEP_TLS_KEY", "/k")], "", "give all three of tls_ca"),
        (&["/d", "--encrypt-data"], &[], "", "encrypt_data needs certificates"),
    ];
    for (args, env, file, expected) in table {
        let error = build(args, env, file).expect_err(expected);
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    let both = build(&["/d", "--shards", "0", "--weight", "0"], &[], "").unwrap_err();
    assert_eq!(both.lines().count(), 2, "all problems at once: {both}");
}

#[test]
fn bad_flags_are_usage_errors() {
    for args in
        [&["--ring-port", "x", "/d"][..], &["--frobnicate", "/d"], &["/d", "/e"], &["--seed", ":1", "/d"]]
    {
        assert!(build(args, &[], "").is_err(), "{args:?}");
    }
}

#[test]
fn the_printed_configuration_reads_back() {
    let args = ["/d", "--seed", "a,[::1]:9", "--capacity", "70000K", "--nbd-unix", "/n", "--zone", "r\"1"];
    let config = build(&args, &[("SHEEP_HTTP", "[::1]:0")], "key = \"/k\"").unwrap();
    let text = config.to_toml();
    let again = build(&[], &[], &text).unwrap();
    assert_eq!(again.effective, config.effective);
    assert!(
        text.contains("zone = 'r\"1' # command line") || text.contains("zone = \"r\\\"1\" # command line"),
        "{text}"
    );
    assert!(text.contains("http = \"[::1]:0\" # environment"), "{text}");
    assert!(text.contains("# weight is not set"), "{text}");
}

#[test]
fn the_first_entry_has_the_settings() {
    let config = build(&["--new", "/d", "--copies", "1", "--object-size", "64K"], &[], "").unwrap();
    let genesis = config.first.genesis(ClusterId(7), NodeId(3));
    assert_eq!(genesis.settings.min_copies, 1);
    assert_eq!(genesis.geometry.object_size(), 64 << 10);
    assert_eq!(genesis.voters, [NodeId(3)]);
}

#[test]
fn the_command_line_says_what_to_do() {
    let run = |args: &[&str]| cli::invocation(args.iter().map(|arg| (*arg).to_owned()), []);
    assert!(matches!(run(&["/d"]), Ok(Invocation::Run(config)) if config.dir == std::path::Path::new("/d")));
    assert!(
        matches!(run(&["/d", "--print-config"]), Ok(Invocation::Print(text)) if text.contains("ring_port = 7000"))
    );
    assert!(matches!(run(&["--version"]), Ok(Invocation::Print(text)) if text.contains("sheep")));
    assert!(
        run(&["/d", "--config", "/nonexistent/file"]).is_err_and(|error| error.contains("/nonexistent/file"))
    );
}

fn garbage_line() -> impl Strategy<Value = String> {
    let known: Vec<String> = toml::Table::try_from(Layer::example()).unwrap().keys().cloned().collect();
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        any::<bool>().prop_map(|b| b.to_string()),
        "\\PC{0,20}".prop_map(|text| format!("{text:?}")),
        "[0-9.:a-z]{0,20}".prop_map(|text| format!("{text:?}")),
        Just("[[], {}]".to_owned()),
        Just("[\"a\", \"b:1\"]".to_owned()),
    ];
    (prop::sample::select(known), value).prop_map(|(key, value)| format!("{key} = {value}\n"))
}

proptest! {
    #[test]
    fn any_file_is_refused_or_makes_sense(
        lines in prop::collection::vec(garbage_line(), 0..5), noise in "\\PC{0,40}", with_noise in any::<bool>(),
    ) {
        let mut file = lines.concat();
        if with_noise {
            file += &noise;
        }
        match build(&["/d"], &[], &file) {
            Ok(config) => prop_assert!(config.first.settings.validate().is_ok()),
            Err(problem) => prop_assert!(!problem.is_empty()),
        }
    }

    #[test]
    fn any_environment_is_refused_or_makes_sense(key in "[A-Z_]{0,20}", value in any::<String>(), line in garbage_line()) {
        let (known, _) = line.split_once(' ').unwrap();
        let known = format!("SHEEP_{}", known.to_ascii_uppercase());
        for variable in [known, format!("SHEEP_{key}")] {
            let built = build(&["/d"], &[(variable.as_str(), value.as_str())], "");
            prop_assert!(built.map_or_else(|problem| !problem.is_empty(), |config| !config.dir.as_os_str().is_empty()));
        }
    }
}
