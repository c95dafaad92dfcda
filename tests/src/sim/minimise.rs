//! Makes a failing plan smaller while it goes on failing: fewer clients, workers,
//! steps and faults, and a kinder network.

use super::bus::Net;
use super::cluster::{NO_END, run_with};
use super::plan::Plan;
use proto::planted::Bug;

/// The smallest plan found within `tries` runs, each with `bug` planted.
pub fn minimise(plan: &Plan, bug: Option<Bug>, tries: usize) -> Plan {
    let mut best = plan.clone();
    let mut left = tries;
    // A plan that cannot come to its end says nothing about another violation.
    let is_endless = |plan: &Plan| Some(run_with(plan, false, bug).violation?.starts_with(NO_END));
    let Some(was_endless) = is_endless(plan) else { return best };
    loop {
        let mut is_smaller = false;
        for candidate in smaller(&best) {
            if left == 0 {
                return best;
            }
            left -= 1;
            if is_endless(&candidate) == Some(was_endless) {
                best = candidate;
                is_smaller = true;
                break;
            }
        }
        if !is_smaller {
            return best;
        }
    }
}

/// Plans with something left out, the most first.
fn smaller(plan: &Plan) -> Vec<Plan> {
    let mut out = Vec::new();
    let mut with = |change: &dyn Fn(&mut Plan)| {
        let mut changed = plan.clone();
        change(&mut changed);
        out.push(changed);
    };
    for client in (0..plan.clients.len()).filter(|_| plan.clients.len() > 1) {
        // Its number stays, so that faults still mean whom they meant.
        if !plan.clients[client].is_empty() {
            with(&|plan| plan.clients[client].clear());
        }
    }
    for (client, workers) in plan.clients.iter().enumerate() {
        for worker in 0..workers.len() {
            if workers.len() > 1 {
                with(&|plan| drop(plan.clients[client].remove(worker)));
            }
            let steps = workers[worker].len();
            if steps > 3 {
                with(&|plan| drop(plan.clients[client][worker].drain(..steps / 2)));
                with(&|plan| plan.clients[client][worker].truncate(steps / 2));
            }
        }
    }
    for fault in 0..plan.faults.len() {
        with(&|plan| {
            plan.faults.remove(fault);
        });
    }
    for servers in plan.servers.smaller() {
        with(&|plan| plan.servers = servers.clone());
    }
    let net = Net { delay_us: plan.net.delay_us, slow_us: plan.net.slow_us, ..Net::default() };
    if plan.net != net {
        with(&|plan| plan.net = net.clone());
        for kinder in [
            Net { lost: 0, ..plan.net.clone() },
            Net { slow: 0, ..plan.net.clone() },
            Net { no_offset: 0, late_ack: 0, ..plan.net.clone() },
            Net { repeated: 0, ..plan.net.clone() },
            Net { reply_lost: 0, ..plan.net.clone() },
        ] {
            if kinder != plan.net {
                with(&|plan| plan.net = kinder.clone());
            }
        }
    }
    if plan.power_goes {
        with(&|plan| plan.power_goes = false);
    }
    if plan.journal {
        with(&|plan| plan.journal = false);
    }
    for (client, workers) in plan.clients.iter().enumerate() {
        for (worker, steps) in workers.iter().enumerate() {
            for step in 0..steps.len() {
                with(&|plan| {
                    plan.clients[client][worker].remove(step);
                });
            }
        }
    }
    out
}
