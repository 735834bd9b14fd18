;; escrow OPERATION ESCROW PARTY AMOUNT PLATFORM CUT_BPS
;;
;; OPERATION 1, hold:    PARTY (who pays) gives AMOUNT into the account ESCROW.
;; OPERATION 2, release: of AMOUNT held there, PLATFORM gets its cut and PARTY (who is paid) the rest:
;;                       cut = AMOUNT * CUT_BPS / 10000, rounded down.
;; OPERATION 3, refund:  PARTY (who paid) gets AMOUNT back.
;;
;; PLATFORM and CUT_BPS count for a release alone.
;;
;; Returns 0, or 1 INSUFFICIENT_FUNDS, 128 BAD_AMOUNT, 129 BAD_CUT, 130 UNKNOWN_OPERATION,
;; 131 NOT_HELD, 132 BAD_ACCOUNT.
(module
  (import "ledger" "credit" (func $credit (param $account i64) (param $amount i64)))
  (import "ledger" "debit" (func $debit (param $account i64) (param $amount i64)))
  (import "ledger" "get_balance" (func $get_balance (param $account i64) (result i64)))

  (func (export "execute")
    (param $operation i64) (param $escrow i64) (param $party i64)
    (param $amount i64) (param $platform i64) (param $cut_bps i64) (param i64 i64)
    (result i32)
    (local $cut i64)

    ;; Known are 1, 2 and 3: of the others, 0 and the negative ones become large by the subtraction.
    (if (i64.gt_u (i64.sub (local.get $operation) (i64.const 1)) (i64.const 2))
      (then (return (i32.const 130))))

    ;; Account 0 is the other side of deposits and withdrawals. And who is the escrow account
    ;; themselves would have paid, or been paid, without any money moving.
    (if (i32.or
          (i64.eqz (local.get $escrow))
          (i64.eq (local.get $escrow) (local.get $party)))
      (then (return (i32.const 132))))

    (if (i64.le_s (local.get $amount) (i64.const 0))
      (then (return (i32.const 128))))

    (if (i64.eq (local.get $operation) (i64.const 1))
      (then
        (if (i64.lt_s (call $get_balance (local.get $party)) (local.get $amount))
          (then (return (i32.const 1))))
        (call $credit (local.get $party) (local.get $amount))
        (call $debit (local.get $escrow) (local.get $amount))
        (return (i32.const 0))))

    (if (i64.eq (local.get $operation) (i64.const 2))
      (then
        (if (i64.eq (local.get $escrow) (local.get $platform))
          (then (return (i32.const 132))))
        ;; Read as unsigned, a negative rate is a very large one: one comparison refuses both.
        (if (i64.gt_u (local.get $cut_bps) (i64.const 10000))
          (then (return (i32.const 129))))
        ;; amount * cut_bps may not fit into 64 bits: whole ten-thousands and the rest apart do.
        (local.set $cut
          (i64.add
            (i64.mul
              (i64.div_u (local.get $amount) (i64.const 10000))
              (local.get $cut_bps))
            (i64.div_u
              (i64.mul
                (i64.rem_u (local.get $amount) (i64.const 10000))
                (local.get $cut_bps))
              (i64.const 10000))))))

    (if (i64.lt_s (call $get_balance (local.get $escrow)) (local.get $amount))
      (then (return (i32.const 131))))
    (call $credit (local.get $escrow) (local.get $amount))
    (call $debit (local.get $party) (i64.sub (local.get $amount) (local.get $cut)))
    ;; Without a cut there is nothing to give: a refund's PLATFORM is not looked at.
    (if (i64.ne (local.get $cut) (i64.const 0))
      (then (call $debit (local.get $platform) (local.get $cut))))
    (i32.const 0)))
