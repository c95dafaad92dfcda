//! Whether many sessions share a server fairly, and what it costs that they are many: the same requests from one session
//! and from all of them at once, each as many under way as the other.

use super::growth::create;
use super::{WARM_UP, at_least, executable, median};
use anyhow::Result;
use harness::Cluster;
use harness::broker::Broker;
use mount::client::Client;
use proto::message::{FileKind, Op, View};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

#[derive(clap::Args)]
pub struct SessionsArgs {
    /// Sessions that share a server.
    #[arg(long, default_value_t = 100, value_parser = at_least(2))]
    sessions: usize,
    /// Requests that each has under way.
    #[arg(long, default_value_t = 64, value_parser = at_least(1))]
    at_once: usize,
    /// Rounds; medians are printed.
    #[arg(long, default_value_t = 3, value_parser = at_least(1))]
    rounds: usize,
}

const USER: &str = "bench";
/// How long sessions ask before it counts, and while it counts.
const BEGINNING: Duration = Duration::from_secs(3);
const ASKING: Duration = Duration::from_secs(10);

pub fn measure(args: &SessionsArgs) -> Result<()> {
    let cluster = Cluster::start_with(&executable()?, Broker::own_kafka)?;
    cluster.user_add(USER)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let warm = Instant::now();
        for number in 1.. {
            ask(&cluster, 1, args.at_once, What::Getattr, args.rounds + number).await?;
            if warm.elapsed() >= WARM_UP {
                break;
            }
        }
        for what in [What::Getattr, What::Create] {
            let mut rounds: Vec<Round> = Vec::new();
            for round in 1..=args.rounds {
                let alone = ask(&cluster, 1, args.at_once, what, round).await?[0];
                let mut each = ask(&cluster, args.sessions, args.at_once, what, round).await?;
                each.sort_by(f64::total_cmp);
                rounds.push((alone, each));
            }
            let of = |pick: &dyn Fn(&Round) -> f64| median(rounds.iter().map(pick));
            let all = |each: &[f64]| each.iter().sum::<f64>();
            let share = |each: &[f64], at: usize| each[at] * each.len() as f64 / all(each);
            println!(
                "{what:?}: one session {:.0}/s, {} sessions {:.0}/s, {:.2}x (goal >= 0.8x). Of an even share the least has {:.2}, \
                 the one in the middle {:.2}, the most {:.2}",
                of(&|round| round.0),
                args.sessions,
                of(&|round| all(&round.1)),
                of(&|round| all(&round.1) / round.0),
                of(&|round| share(&round.1, 0)),
                of(&|round| share(&round.1, args.sessions / 2)),
                of(&|round| share(&round.1, args.sessions - 1)),
            );
        }
        Ok(())
    })
}

/// What one session had alone, and what each of many had, from the least to the most.
type Round = (f64, Vec<f64>);

#[derive(Clone, Copy, Debug)]
enum What {
    Getattr,
    Create,
}

/// Requests a second that each of `sessions` had answered while all asked.
async fn ask(cluster: &Cluster, sessions: usize, at_once: usize, what: What, round: usize) -> Result<Vec<f64>> {
    let mut clients: Vec<(Client, _)> = Vec::new();
    for number in 0..sessions {
        let client = cluster.client(USER).await?;
        let name = format!("{what:?}-{sessions}-{round}-{number}");
        let dir = create(&client, client.root(), &name, FileKind::Dir).await?;
        clients.push((client, dir));
    }
    let from = Instant::now() + BEGINNING;
    let until = from + ASKING;
    let mut tasks = JoinSet::new();
    for (number, (client, dir)) in clients.iter().enumerate() {
        for turn in 0..at_once {
            let (client, dir) = (client.clone(), *dir);
            tasks.spawn(async move {
                let (mut counted, mut asked) = (0, 0);
                loop {
                    match what {
                        What::Create => {
                            create(&client, dir, &format!("file{turn}-{asked}"), FileKind::File).await?;
                        }
                        What::Getattr => {
                            let op = Op::View(View::Getattr { ino: dir });
                            client.call(op, Default::default(), &client.patience()).await?;
                        }
                    }
                    asked += 1;
                    let now = Instant::now();
                    if now >= until {
                        return anyhow::Ok((number, counted));
                    }
                    counted += u32::from(now >= from);
                }
            });
        }
    }
    let mut each = vec![0.0; sessions];
    while let Some(done) = tasks.join_next().await {
        let (number, counted) = done??;
        each[number] += f64::from(counted) / ASKING.as_secs_f64();
    }
    for (client, _) in clients {
        client.close().await;
    }
    Ok(each)
}
